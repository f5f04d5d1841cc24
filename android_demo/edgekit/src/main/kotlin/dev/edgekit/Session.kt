package dev.edgekit

import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtException
import ai.onnxruntime.OrtLoggingLevel
import ai.onnxruntime.OrtSession
import java.io.Closeable
import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder

/** A run was told to end; never leaves the engine. */
internal class Stopped : Exception()

/** ONNX Runtime itself. */
internal object Onnx {
    /** Throws [RuntimeUnavailableException] when its native libraries are not there or too old. */
    val environment: OrtEnvironment by lazy {
        disableTelemetry()
        val found = try {
            OrtEnvironment.getEnvironment(OrtLoggingLevel.ORT_LOGGING_LEVEL_FATAL, "edgekit")
        } catch (error: LinkageError) {
            throw RuntimeUnavailableException("ONNX Runtime cannot be loaded: ${reason(error)}", error)
        }
        val (major, minor) = found.version.split('.').map { it.toIntOrNull() ?: 0 }
        if (major < Spec.OLDEST_MAJOR || major == Spec.OLDEST_MAJOR && minor < Spec.OLDEST_MINOR) {
            throw RuntimeUnavailableException("ONNX Runtime is ${found.version}, bundles need ${Spec.OLDEST_MAJOR}.${Spec.OLDEST_MINOR} or newer")
        }
        found.setTelemetry(false)
        found
    }

    // Since 1.29 the official builds report home, and only the environment is read early enough. A plain JVM cannot set
    // it; there, whoever starts the JVM does.
    private fun disableTelemetry() {
        try {
            val os = Class.forName("android.system.Os")
            val set = os.getMethod("setenv", String::class.java, String::class.java, Boolean::class.javaPrimitiveType)
            set.invoke(null, "ORT_DISABLE_TELEMETRY", "1", true)
        } catch (error: ReflectiveOperationException) {
            return
        }
    }

    private fun reason(error: Throwable): String = error.message ?: error.cause?.toString() ?: error.toString()
}

/**
 * An ONNX Runtime session of one graph, loaded by its path so that weights are mapped. Safe to use from several threads, one run at a time.
 *
 * [library] is registered when it is not null, and where it is [needed] has to take over: ONNX Runtime falls back to function bodies
 * without a word. With [profile], the prefix of a file, every kernel is recorded until [endProfiling].
 *
 * Throws [BundleException] when ONNX Runtime refuses the graph, [UsageException] for an impossible number of threads,
 * [RuntimeUnavailableException] when the library cannot be loaded, has not the instruction set asked for, or does not take over.
 */
internal class Session(
    private val graph: File,
    threads: Int,
    private val library: File?,
    needed: Boolean,
    profile: File? = null,
) : Closeable {
    private val environment = Onnx.environment
    private val lock = Any()
    private val options = OrtSession.SessionOptions()
    private val runOptions = OrtSession.RunOptions()

    // A decoder's logits_to_keep is an input, or an initializer that a run may override. ONNX Runtime's Java API cannot
    // override one, but lets it be replaced by memory of ours, which is written before each run.
    private val keep = ByteBuffer.allocateDirect(Long.SIZE_BYTES).order(ByteOrder.nativeOrder())
    private val keepTensor = tensor(DType.INT64, keep, 1)
    private val ort: OrtSession
    private var closed = false
    private var terminating = false
    private var freed = false

    val inputs: Set<String>
    val outputs: List<String>

    init {
        var made: OrtSession? = null
        try {
            if (threads < 1) throw UsageException("threads: $threads is less than 1; give the number of cores to use")
            val before = nodes()
            configure(threads, profile)
            made = environment.createSession(graph.path, options)
            inputs = made.inputNames
            outputs = made.outputNames.toList()
            if (library != null && needed && nodes() <= before) {
                throw RuntimeUnavailableException(
                    "$graph: $library was registered, but ONNX Runtime ${environment.version} runs the function bodies instead of " +
                        "its operators; please report it",
                )
            }
            ort = made
        } catch (error: OrtException) {
            release(null)
            throw BundleException("$graph: ONNX Runtime ${environment.version} refuses it: ${oneLine(error)}", error)
        } catch (error: EdgeKitException) {
            release(made)
            throw error
        }
    }

    /** What the operator library says of itself now, or nothing without one. */
    val operators: String get() = library?.let(Operators::load).orEmpty()

    /** Runs the graph on tensors by name. Throws [UsageException] for wrong names, [BundleException] with ONNX Runtime's words. */
    fun run(feeds: Map<String, Tensor>, wanted: Collection<String> = outputs): Map<String, Tensor> {
        checkNames("inputs", feeds.keys - KEEP, inputs)
        checkNames("outputs", wanted, outputs)
        val given = LinkedHashMap<String, OnnxTensor>()
        try {
            for ((name, value) in feeds) if (name != KEEP) given[name] = tensor(value)
            val rows = feeds[KEEP]?.longs()?.firstOrNull() ?: 0
            return guarded {
                keep.putLong(0, rows)
                ort.run(given + keepInput(), wanted.toSet(), runOptions).use { result ->
                    wanted.associateWith { copy(result.get(it).get() as OnnxTensor) }
                }
            }
        } finally {
            given.values.forEach { it.close() }
        }
    }

    /**
     * Runs the graph with every output in memory of the caller's; [given] holds [keepInput], and [rows] becomes its value. Throws [Stopped]
     * when [stop] was called, [BundleException] with ONNX Runtime's words.
     */
    fun runBound(given: Map<String, OnnxTensor>, into: Map<String, OnnxTensor>, rows: Long) {
        guarded {
            keep.putLong(0, rows)
            ort.run(given, emptySet(), into, runOptions).close()
        }
    }

    /** `logits_to_keep` by its name, where it is an input of the graph. */
    fun keepInput(): Map<String, OnnxTensor> = if (KEEP in inputs) mapOf(KEEP to keepTensor) else emptyMap()

    /** A tensor over [buffer], which it does not copy; it is closed by the caller. */
    fun tensor(dtype: DType, buffer: ByteBuffer, vararg shape: Long): OnnxTensor {
        val native = buffer.duplicate().order(ByteOrder.nativeOrder())
        native.rewind()
        return OnnxTensor.createTensor(environment, native, shape, TYPES.getValue(dtype))
    }

    /** [value] as ONNX Runtime's, which reads its memory; it is closed by the caller. */
    fun tensor(value: Tensor): OnnxTensor = tensor(value.dtype, value.data, *value.shape)

    /** Ends a run that is under way in another thread, and all others until [resume]. */
    fun stop() {
        synchronized(runOptions) {
            if (!terminating && !freed) runOptions.setTerminate(true)
            terminating = true
        }
    }

    fun resume() {
        synchronized(runOptions) {
            if (terminating && !freed) runOptions.setTerminate(false)
            terminating = false
        }
    }

    /** The file with what was recorded; recording ends here. */
    fun endProfiling(): File = synchronized(lock) { File(ort.endProfiling()) }

    /** Ends what runs and frees the session; any later run throws [UsageException]. */
    override fun close() {
        stop()
        synchronized(lock) {
            if (closed) return
            closed = true
            release(ort)
        }
    }

    private fun configure(threads: Int, profile: File?) {
        options.setIntraOpNumThreads(threads)
        options.setInterOpNumThreads(1)
        options.setSessionLogLevel(OrtLoggingLevel.ORT_LOGGING_LEVEL_FATAL) // its messages come as exceptions too
        options.addConfigEntry("session.intra_op.spin_duration_us", Spec.SPIN_MICROSECONDS)
        options.addInitializer(KEEP, keepTensor)
        if (profile != null) options.enableProfiling(profile.path)
        if (library != null) options.registerCustomOpLibrary(library.absolutePath)
    }

    private fun nodes(): Long = Operators.nodes(operators)

    private fun <T> guarded(run: () -> T): T = synchronized(lock) {
        if (closed) throw UsageException("$graph: the model was closed; open it again")
        try {
            run()
        } catch (error: OrtException) {
            if (synchronized(runOptions) { terminating }) throw Stopped()
            throw BundleException("$graph: ONNX Runtime stopped: ${oneLine(error)}", error)
        }
    }

    private fun checkNames(what: String, given: Collection<String>, known: Collection<String>) {
        val unknown = given.filter { it !in known }
        if (unknown.isNotEmpty()) throw UsageException("$what: $unknown given, the graph has $known")
    }

    private fun copy(value: OnnxTensor): Tensor {
        val info = value.info
        val dtype = TYPES.entries.firstOrNull { it.value == info.type }?.key
            ?: throw UnsupportedException("$graph: an output of type ${info.type} cannot be read on this device")
        return Tensor.zeros(dtype, *info.shape).also { it.data.duplicate().put(value.byteBuffer) }
    }

    private fun release(session: OrtSession?) {
        session?.close()
        synchronized(runOptions) {
            freed = true
            runOptions.close()
        }
        options.close()
        keepTensor.close()
    }

    companion object {
        /** Of a decoder: how many of the last positions get logits, 0 for all. */
        const val KEEP = "logits_to_keep"

        // An idle worker stays awake so long: as fast as for ever, and kind to the other cores.
        private val TYPES = mapOf(
            DType.FLOAT32 to OnnxJavaType.FLOAT, DType.FLOAT16 to OnnxJavaType.FLOAT16, DType.INT64 to OnnxJavaType.INT64,
            DType.INT32 to OnnxJavaType.INT32, DType.UINT8 to OnnxJavaType.UINT8, DType.INT8 to OnnxJavaType.INT8,
            DType.BOOL to OnnxJavaType.BOOL,
        )

        private fun oneLine(error: Exception): String = error.message.orEmpty().split(Regex("\\s+")).joinToString(" ").take(300)
    }
}
