package dev.edgekit.demo

import dev.edgekit.EdgeKit
import dev.edgekit.GenerateOptions
import dev.edgekit.Model
import java.io.File
import kotlinx.coroutines.flow.Flow

/** The real engine. [library] gives the operator library of the app, or null; it is asked when a bundle is opened. */
class EdgeKitEngine(private val library: () -> File?) : DemoEngine {
    // Phones have two to four quick cores; with the slow ones too, the quick ones wait.
    private val threads = (Runtime.getRuntime().availableProcessors() / 2).coerceIn(1, 4)

    override fun open(directory: File, progress: (done: Long, total: Long) -> Unit): OpenBundle =
        EdgeKitBundle(EdgeKit.open(directory, threads, library(), verify = true, progress = progress), threads)
}

private class EdgeKitBundle(private val model: Model, threads: Int) : OpenBundle {
    private val manifest = model.manifest

    override val summary = listOf(
        manifest.name,
        manifest.task,
        "operators: ${model.operators.ifEmpty { "none needed" }}",
        if (threads == 1) "1 thread" else "$threads threads",
    ).joinToString(" · ")

    override val vectors = manifest.vectors.size

    override val chats = manifest.decoder != null

    override fun parity(vector: Int): ParityRow {
        val result = model.parity(vector)
        val golden = manifest.vectors[vector]
        val name = File(golden.file).nameWithoutExtension
        return ParityRow(
            name, result.maxAbs, result.sqnrDb, result.cosine, result.top1, result.passed, real = golden.kind != "random",
        )
    }

    override fun benchmark(): List<BenchmarkBar> =
        model.benchmark().map { BenchmarkBar(it.phase, it.p50Ms, it.p90Ms, it.tokensPerSecond) }

    override fun reply(message: String): Flow<String> = model.generate(message, GenerateOptions())

    override fun close() = model.close()
}
