package dev.edgekit.runner

import dev.edgekit.Bundle
import dev.edgekit.BundleException
import dev.edgekit.Decoder
import dev.edgekit.DecoderInfo
import dev.edgekit.DecoderSubject
import dev.edgekit.Json
import dev.edgekit.Manifest
import dev.edgekit.Onnx
import dev.edgekit.SampleSubject
import dev.edgekit.Safetensors
import dev.edgekit.Session
import dev.edgekit.Spec
import dev.edgekit.Subject
import dev.edgekit.Tensor
import dev.edgekit.UnsupportedException
import dev.edgekit.UsageException
import dev.edgekit.milliseconds
import dev.edgekit.sourceOf
import java.io.Closeable
import java.io.File

private typealias Answer = Map<String, Any?>

/** One bundle and its session. Throws the engine's exceptions. */
internal class Runner(settings: Request) : Closeable {
    private val environment = Onnx.environment
    private val directory = File(settings.text("bundle"))
    private val graph = File(directory, settings.text("graph", "model.onnx"))
    private val threads = settings.number("threads")
    private val library = settings.text("library", "").ifEmpty { null }?.let(::File)
    private val manifest = manifest()
    private val promptTokens = settings.number("prompt_tokens", 1)
    private val newTokens = settings.number("new_tokens", 1)
    private val maxLength = settings.number("max_length", promptTokens + newTokens)
    private var session: Session? = null
    private var encoder: Session? = null
    private var subject: Subject? = null

    /** The first line that a runner says. */
    fun facts(): Answer = mapOf(
        "runner" to PROTOCOL,
        "pid" to File("/proc/self").canonicalFile.name.toLong(),
        "onnxruntime" to environment.version,
        "runtime" to "${System.getProperty("java.vm.name")} ${System.getProperty("java.vm.version")}",
    )

    /** Hands the lines that answer [request] to [say]. */
    fun answer(request: Request, say: (Answer) -> Unit) {
        when (val what = request.text("do", "")) {
            "load" -> say(measured(::load))
            "first" -> say(measured { loaded().first() })
            "round" -> say(mapOf("times" to round()))
            "finish" -> say(mapOf("memory" to memory(), "operators" to operators()))
            "replay" -> say(mapOf("arrays" to packed(loaded().replay(vector(request.text("vector")) + arrays(request)))))
            "run" -> say(mapOf("arrays" to packed(run(request))))
            "generate" -> generate(request, say)
            "profile" -> {
                unload() // two copies of a large model may not fit
                say(mapOf("events" to profile()))
            }
            else -> throw UsageException("request '$what': this runner does not know it; push the runner again")
        }
    }

    override fun close() = unload()

    private fun unload() {
        session?.close()
        encoder?.close()
        session = null
        encoder = null
        subject = null
    }

    private fun manifest(): Manifest = try {
        Bundle.manifest(directory)
    } catch (error: BundleException) {
        throw BundleException("$directory: no readable manifest.json (${error.message})", error)
    }

    private fun measured(work: () -> Unit): Answer {
        val before = memory()
        val milliseconds = milliseconds(work)
        return mapOf("ms" to milliseconds, "before" to before, "after" to memory(), "operators" to operators())
    }

    private fun load() {
        unload()
        encoder = encoder()
        session = Session(graph, threads, library, manifest.needsOperators).also { subject = subject(it, maxLength) }
    }

    private fun loaded(): Subject = subject ?: throw UsageException("request before load")

    private fun subject(session: Session, slots: Int): Subject {
        val first = manifest.vectors.firstOrNull()?.let { vector(it.file) }
        val info = manifest.decoder ?: return SampleSubject(session, first.orEmpty())
        return DecoderSubject(decoder(session, info, slots), info, first, promptTokens, newTokens)
    }

    private fun decoder(session: Session, info: DecoderInfo, slots: Int): Decoder {
        if (slots !in 1..info.maxLength) throw UsageException("max_length: $slots is outside 1 to ${info.maxLength}, the model's context")
        return Decoder(session, info, slots, encoder)
    }

    /** The session of an encoder-decoder's encoder. */
    private fun encoder(): Session? {
        if (manifest.decoder?.encoder == null) return null
        val place = File(directory, Spec.ENCODER)
        return Session(File(place, Spec.GRAPH), threads, library, Bundle.manifest(place).needsOperators)
    }

    private fun operators(): String = session?.operators.orEmpty()

    private fun round(): Map<String, List<Double>> {
        val subject = loaded()
        System.gc() // a pause for it is no property of the model
        return subject.round()
    }

    private fun vector(file: String): Map<String, Tensor> {
        if (manifest.vectors.none { it.file == file }) throw BundleException("$directory: $file is no golden vector of its manifest")
        return Safetensors.read(File(directory, file))
    }

    private fun run(request: Request): Map<String, Tensor> {
        loaded()
        return checkNotNull(session).run(arrays(request), request.texts("outputs"))
    }

    private fun arrays(request: Request): Map<String, Tensor> = request.objects("arrays").mapValues { unpacked(it.value) }

    private fun generate(request: Request, say: (Answer) -> Unit) {
        val decoder = (loaded() as? DecoderSubject)?.decoder
            ?: throw UnsupportedException("$directory: no language model; nothing to generate")
        val ids = request.numbers("ids").let { given -> IntArray(given.size) { Math.toIntExact(given[it]) } }
        if (ids.isEmpty()) throw UsageException("ids: no tokens; give at least one")
        val source = arrays(request)
        val most = request.number("max_new_tokens")
        val stop = request.numbers("stop")
        decoder.reset()
        var fed = ids
        var made = 0
        while (true) {
            var token = 0
            val spent = milliseconds {
                if (made == 0 && source.isNotEmpty()) decoder.encode(source)
                decoder.feed(fed)
                token = Decoder.likeliest(decoder.logits)
            }
            if (token.toLong() in stop) return say(mapOf("done" to true, "finish" to "stop", "ms" to spent))
            say(mapOf("token" to token, "ms" to spent))
            if (++made == most || decoder.length == decoder.slots) break
            fed = intArrayOf(token)
        }
        say(mapOf("done" to true, "finish" to "length", "ms" to 0.0))
    }

    /** A session of its own, run once: operator, name and microseconds of every node. */
    private fun profile(): List<Answer> {
        val text = Session(graph, threads, library, manifest.needsOperators, File(scratch(), "edgekit-profile")).use { session ->
            profiled(session)
            val file = session.endProfiling()
            file.readText().also { file.delete() }
        }
        return (Json.parse(text) as List<*>).mapNotNull { event ->
            val fields = event as Map<*, *>
            val name = fields["name"] as String
            val operator = (fields["args"] as? Map<*, *>)?.get("op_name")
            if (fields["cat"] != "Node" || !name.endsWith(TIME)) return@mapNotNull null
            mapOf("op" to operator, "name" to name.removeSuffix(TIME), "us" to fields["dur"])
        }
    }

    /** One token, behind the first golden source where there is an encoder; or one run. */
    private fun profiled(session: Session) {
        val info = manifest.decoder ?: return subject(session, 1).first()
        encoder = encoder()
        val decoder = decoder(session, info, 1)
        if (encoder != null) decoder.encode(sourceOf(vector(manifest.vectors.first().file)))
        decoder.feed(IntArray(1))
        unload()
    }

    /** A directory to write to: Android's shell names one; not every device has Java's. */
    private fun scratch(): File = listOf(System.getenv("TMPDIR"), System.getProperty("java.io.tmpdir")).mapNotNull { it?.let(::File) }
        .firstOrNull { it.isDirectory && it.canWrite() } ?: directory

    private companion object {
        const val PROTOCOL = 1
        const val TIME = "_kernel_time"
    }
}
