package dev.edgekit.demo

import java.io.Closeable
import java.io.File
import kotlinx.coroutines.flow.Flow

/** A bundle that can be opened: [name] is its directory's, [where] is for people, [key] tells [BundleSource] which it is. */
data class BundleChoice(val name: String, val where: String, val key: String) {
    /** What the list shows. */
    override fun toString(): String = "$name · $where"
}

/** Where bundles come from. All of it blocks and may raise any exception, whose message is shown. */
interface BundleSource {
    fun list(): List<BundleChoice>

    /** The bundle's directory, after copying it there if need be; [progress] gets bytes. */
    fun prepare(choice: BundleChoice, progress: (done: Long, total: Long) -> Unit): File
}

/** What the screen needs of the engine: an interface, so that [DemoModel] is tested without ONNX Runtime. */
interface DemoEngine {
    /** Opens the bundle and checks its files; [progress] gets bytes checked. */
    fun open(directory: File, progress: (done: Long, total: Long) -> Unit): OpenBundle
}

/** An open bundle. Everything but [reply]'s collection blocks. */
interface OpenBundle : Closeable {
    val summary: String
    val vectors: Int
    val chats: Boolean

    fun parity(vector: Int): ParityRow

    fun benchmark(): List<BenchmarkBar>

    /** The answer in pieces of text, as the model makes them; ending the collection ends the run. */
    fun reply(message: String): Flow<String>
}

/**
 * One golden vector: the largest absolute difference to PyTorch's answer, signal to noise in dB, cosine, and for decoders the share of
 * positions with the same likeliest token (0 to 1). [real] is false for random input, which proves less and is never a pass.
 */
data class ParityRow(
    val vector: String,
    val maxAbs: Double,
    val sqnrDb: Double,
    val cosine: Double,
    val top1: Double?,
    val passed: Boolean,
    val real: Boolean,
)

/** Milliseconds of a [phase]: "latency", or a decoder's "prefill" and "decode". */
data class BenchmarkBar(val phase: String, val p50Ms: Double, val p90Ms: Double, val tokensPerSecond: Double?)
