package dev.edgekit

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
        val version = fields.whole("schema_version")
        fields.whole("schema_minor", 0)
        task = fields.text("task")
        name = fields.text("name")
        architecture = fields.text("architecture")
        source = fields.text("source")
        recipe = fields.map("recipe") { value, _ -> value }
        parity = Limits(Fields("${fields.where}.recipe.parity", recipe["parity"] ?: emptyMap<String, Any?>(), fields.lenient))
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
        if (task !in Spec.TASKS) {
            throw BundleException("${fields.where}.task: \"${task.take(60)}\" is not one of ${Spec.TASKS.joinToString()}")
        }
        decoder?.let {
            if (it.kvHeads.size.toLong() != it.layers || it.headDim.size.toLong() != it.layers) {
                val counts = "${it.layers} layers, but ${it.kvHeads.size} kv_heads and ${it.headDim.size} head_dim"
                throw BundleException("${fields.where}.decoder: $counts")
            }
            if (version < Spec.STATES_VERSION && (0 in it.kvHeads || 0 in it.headDim)) {
                throw BundleException("${fields.where}.decoder: a layer without keys and values in a manifest of version $version")
            }
            if (it.kvHeads.zip(it.headDim).any { (heads, dim) -> (heads == 0) != (dim == 0) }) {
                throw BundleException("${fields.where}.decoder: kv_heads ${it.kvHeads} and head_dim ${it.headDim}, 0 in one of them")
            }
            it.encoder?.let { encoder -> checkEncoder(encoder, it.vocabSize, "${fields.where}.decoder.encoder") }
            it.states.forEach { state -> checkState(state, "${fields.where}.decoder.states: \"${state.input.take(60)}\"") }
        }
    }

    /** Whether some layer runs on edgekit's operator library; a table that is only looked up does not. */
    public val usesOperators: Boolean get() = nativeFormats().isNotEmpty()

    /** Whether some layer would be slower, or rounded in another way, without edgekit's operator library. */
    public val needsOperators: Boolean get() = nativeFormats().any { it in Spec.NEEDED_FORMATS }

    private fun checkEncoder(info: EncoderInfo, vocabulary: Int, place: String) {
        if (info.heads.size != info.headDim.size) throw BundleException("$place: ${info.heads.size} heads, but ${info.headDim.size} head_dim")
        if (info.maxLength !in 0..Int.MAX_VALUE) throw BundleException("$place.max_length: ${info.maxLength} is not between 0 and ${Int.MAX_VALUE}")
        if (info.startTokens.isEmpty() || (info.startTokens + info.suppressedTokens).any { it !in 0 until vocabulary }) {
            throw BundleException("$place: no start_tokens, or tokens that are not between 0 and ${vocabulary - 1}")
        }
    }

    private fun checkState(state: StateTensor, place: String) {
        if (state.kind !in Spec.STATE_KINDS || state.dtype !in Spec.STATE_TYPES) {
            throw BundleException(
                "$place is \"${state.kind.take(60)}\" and \"${state.dtype.take(60)}\", this edgekit knows " +
                    "${Spec.STATE_KINDS.joinToString()} and ${Spec.STATE_TYPES.joinToString()}: update the app",
            )
        }
        var numbers = if (state.dims.isEmpty()) 0L else 1L
        for (size in state.dims) numbers = if (size in 1..Spec.LARGEST_STATE && numbers in 1..Spec.LARGEST_STATE) numbers * size else 0
        if (numbers !in 1..Spec.LARGEST_STATE) {
            throw BundleException("$place has dims ${state.dims.take(8)}, from 1 and ${Spec.LARGEST_STATE} numbers at most")
        }
    }

    private fun nativeFormats(): List<String> = layers.filter {
        it.format in Spec.NATIVE_FORMATS && (it.activationBlockSize >= 0 || it.format !in Spec.TABLE_FORMATS)
    }.map { it.format }

    public companion object {
        /** The newest manifest that is understood here; of a newer minor version, unknown keys are ignored. */
        public const val SCHEMA_VERSION: Int = Spec.SCHEMA_VERSION

        /** The manifest in [text]; [where] names the file in errors. Throws [BundleException] naming the key. */
        public fun parse(text: String, where: String): Manifest {
            val data = try {
                Json.parse(text)
            } catch (error: JsonException) {
                throw BundleException("$where: not valid JSON (${error.message}); export or download the bundle again", error)
            }
            val entries = data as? Map<*, *>
            val version = entries?.get("schema_version")
            if (version !is Long || version < 1) {
                throw BundleException("$where: no schema_version; this is not an edgekit bundle, or a damaged one")
            }
            if (version > SCHEMA_VERSION) {
                throw BundleException(
                    "$where: schema_version $version, this edgekit reads up to $SCHEMA_VERSION; the bundle was written by a newer " +
                        "edgekit: update the app",
                )
            }
            if (version == Spec.PICTURES_VERSION) {
                throw UnsupportedException("$where: reads pictures or sound; such models run in Python and on Linux devices, not here")
            }
            val minor = entries["schema_minor"] ?: 0L
            if (minor !is Long || minor < 0) throw BundleException("$where: schema_minor: $minor is not a whole number from 0")
            return Manifest(Fields("$where: manifest", data, lenient = minor > Spec.SCHEMA_MINOR))
        }
    }
}

/**
 * One object of the manifest, read key by key; [end] refuses those that nobody asked for, unless [lenient]: the bundle is of a newer
 * minor version. [where] names it in errors.
 */
internal class Fields(val where: String, value: Any?, val lenient: Boolean = false) {
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

    fun wholesOrNames(key: String): List<Any> = list(key) { value, where ->
        if (value is Long || value is String) value else wrong(where, "a number or a name", value)
    }

    /** A number that buffers are allocated by. */
    fun limited(key: String, most: Int): Int = limit(whole(key), key, 1, most)

    /** Of each layer, 0 where it has none of it. */
    fun allLimited(key: String, most: Int): List<Int> = wholes(key).map { limit(it, key, 0, most) }

    private fun limit(value: Long, key: String, least: Int, most: Int): Int {
        if (value !in least..most) throw BundleException("${at(key)}: $value is not between $least and $most")
        return value.toInt()
    }

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
        if (optional && !has(key)) emptyList() else list(key) { value, where -> read(Fields(where, value, lenient)) }

    fun <T> partOrNull(key: String, read: (Fields) -> T): T? =
        if (has(key) && entries[key] != null) read(Fields(at(key), entries[key], lenient)) else null

    /** What a reader does not know could change the meaning of what it does know. */
    fun end() {
        if (lenient) return
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
