package dev.edgekit

/** One input or output of the graph. [dtype] is ONNX's name in lower case; [dims] are numbers (Long) or names of sizes that vary. */
public class TensorInfo internal constructor(fields: Fields) {
    public val name: String = fields.text("name")
    public val dtype: String = fields.text("dtype")
    public val dims: List<Any> = fields.list("dims") { value, where ->
        if (value is Long || value is String) value else Fields.wrong(where, "a number or a name", value)
    }

    init {
        fields.end()
    }
}

/** What became of one layer with weights; docs/spec.md, section 4. */
public class Layer internal constructor(fields: Fields) {
    public val name: String = fields.text("name")
    public val format: String = fields.text("format")
    public val blockSize: Long = fields.whole("block_size")
    public val bitsPerWeight: Double = fields.number("bits_per_weight")
    public val shape: List<Long> = fields.wholes("shape")
    public val tensor: String = fields.text("tensor", "")
    public val scales: String = fields.text("scales", "")
    public val rows: List<Long> = fields.wholes("rows", emptyList())
    public val activationBlockSize: Long = fields.whole("activation_block_size", -1)
    public val reason: String = fields.text("reason", "")

    init {
        fields.end()
    }
}

/** Units that change no output and were removed, or look so and had to stay; docs/spec.md, section 4. */
public class DeadUnits internal constructor(fields: Fields) {
    public val layer: String = fields.text("layer")
    public val unit: String = fields.text("unit")
    public val count: Long = fields.whole("count")
    public val of: Long = fields.whole("of")
    public val removed: Boolean = fields.flag("removed")
    public val reason: String = fields.text("reason")

    init {
        fields.end()
    }
}

/** What generating text with the graph needs; docs/spec.md, section 5. */
public class DecoderInfo internal constructor(fields: Fields) {
    public val layers: Int
    public val kvHeads: List<Int>
    public val headDim: List<Int>
    public val vocabSize: Int
    public val maxLength: Int

    /** The largest difference of logits between the original model and the one that was traced. */
    public val proofError: Double
    public val bosTokenId: Long?
    public val eosTokenIds: List<Long>

    init {
        val count = fields.whole("layers")
        val heads = fields.wholes("kv_heads")
        val dims = fields.wholes("head_dim")
        if (heads.size.toLong() != count || dims.size.toLong() != count) {
            throw BundleException("${fields.where}: $count layers, but ${heads.size} kv_heads and ${dims.size} head_dim")
        }
        layers = heads.size
        kvHeads = heads.map { limited(fields, "kv_heads", it, 4096) }
        headDim = dims.map { limited(fields, "head_dim", it, 65_536) }
        vocabSize = limited(fields, "vocab_size", fields.whole("vocab_size"), 1 shl 27)
        maxLength = limited(fields, "max_length", fields.whole("max_length"), 1 shl 27)
        proofError = fields.number("proof_error", 0.0)
        bosTokenId = fields.wholeOrNull("bos_token_id")
        eosTokenIds = fields.wholes("eos_token_ids", emptyList())
        fields.end()
    }

    /** Buffers are allocated by these numbers. */
    private fun limited(fields: Fields, key: String, value: Long, most: Int): Int {
        if (value !in 1..most) throw BundleException("${fields.where}.$key: $value is not between 1 and $most")
        return value.toInt()
    }
}

/** A file of golden inputs and answers. [kind] is "text", "sample" or "random"; random input proves less. */
public class VectorInfo internal constructor(fields: Fields) {
    public val file: String = fields.text("file")
    public val kind: String = fields.text("kind")

    init {
        fields.end()
    }
}

/** One file of the bundle. */
public class FileInfo internal constructor(fields: Fields) {
    public val path: String = fields.text("path")
    public val bytes: Long = fields.whole("bytes")
    public val sha256: String = fields.text("sha256")

    init {
        fields.end()
    }
}

/** What must hold; null is not checked. maxAbs, kl and perplexityRatio are upper limits, the others lower ones. */
public class Limits internal constructor(fields: Fields) {
    public val maxAbs: Double? = fields.numberOrNull("max_abs")
    public val sqnrDb: Double? = fields.numberOrNull("sqnr_db")
    public val cosine: Double? = fields.numberOrNull("cosine")
    public val top1: Double? = fields.numberOrNull("top1")
    public val kl: Double? = fields.numberOrNull("kl")
    public val perplexityRatio: Double? = fields.numberOrNull("perplexity_ratio")

    /** A changed top-1 counts only where the reference led by more than this many logits. */
    public val margin: Double = fields.number("margin", 0.0)

    init {
        fields.end()
    }
}

/** A bundle's manifest.json, read strictly: docs/spec.md, section 2. */
public class Manifest private constructor(fields: Fields) {
    public val task: String
    public val name: String
    public val architecture: String
    public val source: String

    /** The recipe as resolved, as it stands in the file. */
    public val recipe: Map<String, Any?>

    /** What the recipe demands of a machine's answers, compared with those of the compressed model in PyTorch. */
    public val parity: Limits
    public val inputs: List<TensorInfo>
    public val outputs: List<TensorInfo>
    public val nodes: Long
    public val layers: List<Layer>
    public val deadUnits: List<DeadUnits>
    public val decoder: DecoderInfo?
    public val vectors: List<VectorInfo>

    /** Module path in the original model to the graph's value that holds its output. */
    public val taps: Map<String, String>
    public val evaluation: Map<String, Double>
    public val versions: Map<String, String>
    public val files: List<FileInfo>

    init {
        fields.whole("schema_version")
        task = fields.text("task")
        name = fields.text("name")
        architecture = fields.text("architecture")
        source = fields.text("source")
        recipe = fields.map("recipe") { value, _ -> value }
        parity = Limits(Fields("${fields.where}.recipe.parity", recipe["parity"] ?: emptyMap<String, Any?>()))
        inputs = fields.parts("inputs", ::TensorInfo)
        outputs = fields.parts("outputs", ::TensorInfo)
        nodes = fields.whole("nodes")
        layers = fields.parts("layers", ::Layer, optional = true)
        deadUnits = fields.parts("dead_units", ::DeadUnits, optional = true)
        decoder = fields.partOrNull("decoder", ::DecoderInfo)
        vectors = fields.parts("vectors", ::VectorInfo, optional = true)
        taps = fields.map("taps", optional = true) { value, where -> Fields.asText(value, where) }
        evaluation = fields.map("evaluation", optional = true) { value, where -> Fields.asNumber(value, where) }
        versions = fields.map("versions", optional = true) { value, where -> Fields.asText(value, where) }
        files = fields.parts("files", ::FileInfo, optional = true)
        fields.end()
        if (task !in TASKS) {
            throw BundleException("${fields.where}.task: \"${task.take(60)}\" is not one of ${TASKS.joinToString()}")
        }
    }

    /** Whether some layer runs on edgekit's operator library; a table that is only looked up does not. */
    public val usesOperators: Boolean
        get() = layers.any { it.format == "t2" || it.format in NATIVE_FORMATS && it.activationBlockSize >= 0 }

    public companion object {
        private val NATIVE_FORMATS = setOf("int8-channel", "sparse-int4", "sparse-int8")

        /** The newest manifest that is understood here. */
        public const val SCHEMA_VERSION: Int = 1
        private val TASKS = listOf("text-generation", "feature-extraction", "image-classification", "generic")

        /** The manifest in [text]; [where] names the file in errors. Throws [BundleException] naming the key. */
        public fun parse(text: String, where: String): Manifest {
            val data = try {
                Json.parse(text)
            } catch (error: JsonException) {
                throw BundleException("$where: not valid JSON (${error.message}); export or download the bundle again", error)
            }
            val version = (data as? Map<*, *>)?.get("schema_version")
            if (version !is Long || version < 1) {
                throw BundleException("$where: no schema_version; this is not an edgekit bundle, or a damaged one")
            }
            if (version > SCHEMA_VERSION) {
                throw BundleException(
                    "$where: schema_version $version, this edgekit reads up to $SCHEMA_VERSION; the bundle was written by a newer " +
                        "edgekit: update the app",
                )
            }
            return Manifest(Fields("$where: manifest", data))
        }
    }
}

/** One object of the manifest, read key by key; [end] refuses those that nobody asked for. [where] names it in errors. */
internal class Fields(val where: String, value: Any?) {
    private val entries: Map<*, *> = value as? Map<*, *> ?: wrong(where, "an object", value)
    private val known = ArrayList<String>()

    fun text(key: String): String = asText(required(key), at(key))

    fun text(key: String, missing: String): String = if (has(key)) text(key) else missing

    fun whole(key: String): Long = asWhole(required(key), at(key))

    fun whole(key: String, missing: Long): Long = if (has(key)) whole(key) else missing

    fun wholeOrNull(key: String): Long? = if (has(key) && entries[key] != null) whole(key) else null

    fun flag(key: String): Boolean = required(key) as? Boolean ?: wrong(at(key), "true or false", entries[key])

    fun number(key: String): Double = asNumber(required(key), at(key))

    fun number(key: String, missing: Double): Double = if (has(key)) number(key) else missing

    fun numberOrNull(key: String): Double? = if (has(key) && entries[key] != null) number(key) else null

    fun wholes(key: String): List<Long> = list(key) { value, where -> asWhole(value, where) }

    fun wholes(key: String, missing: List<Long>): List<Long> = if (has(key)) wholes(key) else missing

    fun <T> list(key: String, read: (Any?, String) -> T): List<T> {
        val value = required(key) as? List<*> ?: wrong(at(key), "a list", entries[key])
        return value.mapIndexed { index, item -> read(item, "${at(key)}[$index]") }
    }

    fun <T> map(key: String, optional: Boolean = false, read: (Any?, String) -> T): Map<String, T> {
        if (optional && !has(key)) return emptyMap()
        val value = required(key) as? Map<*, *> ?: wrong(at(key), "an object", entries[key])
        return value.entries.associate { (name, item) -> name as String to read(item, "${at(key)}.$name") }
    }

    fun <T> parts(key: String, read: (Fields) -> T, optional: Boolean = false): List<T> =
        if (optional && !has(key)) emptyList() else list(key) { value, where -> read(Fields(where, value)) }

    fun <T> partOrNull(key: String, read: (Fields) -> T): T? =
        if (has(key) && entries[key] != null) read(Fields(at(key), entries[key])) else null

    /** What a reader does not know could change the meaning of what it does know. */
    fun end() {
        val unknown = entries.keys.firstOrNull { it !in known } ?: return
        throw BundleException("$where: unknown key \"${unknown.toString().take(60)}\"; known are ${known.joinToString()}")
    }

    private fun at(key: String) = "$where.$key"

    private fun has(key: String): Boolean {
        if (key !in known) known.add(key)
        return entries.containsKey(key)
    }

    private fun required(key: String): Any? {
        if (!has(key)) throw BundleException("$where: missing key \"$key\"")
        return entries[key]
    }

    companion object {
        fun asText(value: Any?, where: String): String = value as? String ?: wrong(where, "text", value)

        fun asWhole(value: Any?, where: String): Long = value as? Long ?: wrong(where, "a whole number", value)

        fun asNumber(value: Any?, where: String): Double =
            value as? Double ?: (value as? Long)?.toDouble() ?: wrong(where, "a number", value)

        fun wrong(where: String, expected: String, found: Any?): Nothing {
            val shown = when (found) {
                null -> "null"
                is Map<*, *> -> "an object"
                is List<*> -> "a list"
                is String -> "\"${found.take(60)}\""
                else -> found.toString()
            }
            throw BundleException("$where: expected $expected, found $shown")
        }
    }
}
