// Written by tools/make_kotlin.py from edgekit/spec: edit there, then run `python -m tools.make_kotlin`.
package dev.edgekit

/** Names and limits that Python and Kotlin share. */
internal object Spec {
    const val SCHEMA_VERSION = 4
    const val SCHEMA_MINOR = 0
    const val STATES_VERSION = 2
    const val PICTURES_VERSION = 4L
    val STATE_TYPES = listOf("float")
    val STATE_KINDS = listOf("replaced")
    const val LARGEST_STATE = 134217728L
    val TASKS = listOf("text-generation", "text2text-generation", "automatic-speech-recognition", "image-text-to-text", "feature-extraction", "image-classification", "generic")
    val NATIVE_FORMATS = listOf("int8", "int8-channel", "int4", "int4-fp16", "t2", "sparse-int4", "sparse-int8")
    val NEEDED_FORMATS = listOf("int8-channel", "t2", "sparse-int4", "sparse-int8")
    val TABLE_FORMATS = listOf("fp32", "fp16", "int8", "int8-channel", "int4")
    const val MANIFEST = "manifest.json"
    const val GRAPH = "model.onnx"
    const val LARGEST_MANIFEST = 67108864L
    const val OLDEST_MAJOR = 1
    const val OLDEST_MINOR = 28
    const val SPIN_MICROSECONDS = "50"
    const val ENCODER = "encoder"
    const val CROSS_MASK = "encoder_attention_mask"
    const val PROMPT_PIECE = 128
    const val REPLAY_PIECE = 64
    const val ROUND_NANOSECONDS = 300000000L
    const val ROUND_RUNS = 200
}

/** One input or output of the graph; symbolic sizes are names. */
public class TensorInfo internal constructor(fields: Fields) {
    public val name: String = fields.text("name")
    /** ONNX name in lower case: float, int64, ... */
    public val dtype: String = fields.text("dtype")
    public val dims: List<Any> = fields.wholesOrNames("dims")

    init {
        fields.end()
    }
}

/** What became of one linear, embedding or convolution layer. */
public class Layer internal constructor(fields: Fields) {
    /** Module path in the original model. */
    public val name: String = fields.text("name")
    public val format: String = fields.text("format")
    public val blockSize: Long = fields.whole("block_size")
    /** Scales and padding counted. */
    public val bitsPerWeight: Double = fields.number("bits_per_weight")
    public val shape: List<Long> = fields.wholes("shape")
    /** Initializer that holds it; rows of it where layers were merged. */
    public val tensor: String = fields.text("tensor", "")
    public val scales: String = fields.text("scales", "")
    public val rows: List<Long> = fields.wholes("rows", emptyList())
    /** -1: activations are not rounded, 0: per token. */
    public val activationBlockSize: Long = fields.whole("activation_block_size", -1)
    /** Why it is not what one might expect. */
    public val reason: String = fields.text("reason", "")

    init {
        fields.end()
    }
}

/** Units of one layer that do nothing: `count` of `of` were removed, or look dead and had to stay. */
public class DeadUnits internal constructor(fields: Fields) {
    /** The layers that make them, e.g. model.layers.0.mlp.gate_proj+up_proj. */
    public val layer: String = fields.text("layer")
    /** Hidden unit, channel, attention head, query head, key-value head, embedding row, zero row, zero column. */
    public val unit: String = fields.text("unit")
    public val count: Long = fields.whole("count")
    public val of: Long = fields.whole("of")
    public val removed: Boolean = fields.flag("removed")
    public val reason: String = fields.text("reason")

    init {
        fields.end()
    }
}

/** A tensor that a decoder hands from call to call beside keys and values: a convolution's window, a recurrent matrix. */
public class StateTensor internal constructor(fields: Fields) {
    public val input: String = fields.text("input")
    public val output: String = fields.text("output")
    /** One of names.STATE_TYPES. */
    public val dtype: String = fields.text("dtype")
    /** Of one row; batch_size stands before them in the graph. */
    public val dims: List<Long> = fields.wholes("dims")
    /** One of names.STATE_KINDS. */
    public val kind: String = fields.text("kind")

    init {
        fields.end()
    }
}

/** What a decoder reads of its encoder, and what an answer begins with. */
public class EncoderInfo internal constructor(fields: Fields) {
    /** Of each decoder layer's cross-attention. */
    public val heads: List<Long> = fields.wholes("heads")
    public val headDim: List<Long> = fields.wholes("head_dim")
    /** Of a source, in the encoder's tokens or samples of sound; 0: of any length. */
    public val maxLength: Long = fields.whole("max_length", 0)
    /** What the decoder is fed first. */
    public val startTokens: List<Long> = fields.wholes("start_tokens", emptyList())
    /** Never chosen. */
    public val suppressedTokens: List<Long> = fields.wholes("suppressed_tokens", emptyList())
    /** Never chosen first. */
    public val beginSuppressedTokens: List<Long> = fields.wholes("begin_suppressed_tokens", emptyList())
    /** The likeliest of them takes the place of the second start token. */
    public val languageTokens: List<Long> = fields.wholes("language_tokens", emptyList())
    /** Of the sound that the encoder reads, in Hz; 0: it reads text. */
    public val samplingRate: Long = fields.whole("sampling_rate", 0)

    init {
        fields.end()
    }
}

/** What a program needs to generate text with the graph. */
public class DecoderInfo internal constructor(fields: Fields) {
    public val layers: Long = fields.whole("layers")
    /** Of each layer, 0 where it has no keys and values. */
    public val kvHeads: List<Int> = fields.allLimited("kv_heads", 4096)
    public val headDim: List<Int> = fields.allLimited("head_dim", 65536)
    public val vocabSize: Int = fields.limited("vocab_size", 134217728)
    /** Tokens the rotary tables reach. */
    public val maxLength: Int = fields.limited("max_length", 134217728)
    public val proofError: Double = fields.number("proof_error", 0.0)
    public val bosTokenId: Long? = fields.wholeOrNull("bos_token_id")
    public val eosTokenIds: List<Long> = fields.wholes("eos_token_ids", emptyList())
    public val states: List<StateTensor> = fields.parts("states", ::StateTensor, optional = true)
    public val encoder: EncoderInfo? = fields.partOrNull("encoder", ::EncoderInfo)

    init {
        fields.end()
    }
}

/** A file of golden inputs and outputs. */
public class VectorInfo internal constructor(fields: Fields) {
    public val file: String = fields.text("file")
    /** One of names.VECTOR_KINDS. */
    public val kind: String = fields.text("kind")

    init {
        fields.end()
    }
}

/** One file of the bundle; the path is relative, with forward slashes. */
public class FileInfo internal constructor(fields: Fields) {
    public val path: String = fields.text("path")
    public val bytes: Long = fields.whole("bytes")
    public val sha256: String = fields.text("sha256")

    init {
        fields.end()
    }
}

/** What must hold; None is not checked. max_abs, kl (nats) and perplexity_ratio are upper limits, the others lower. `top1` is a share of positions, `sqnr_db` is in decibels. */
public class Limits internal constructor(fields: Fields) {
    public val maxAbs: Double? = fields.numberOrNull("max_abs")
    public val sqnrDb: Double? = fields.numberOrNull("sqnr_db")
    public val cosine: Double? = fields.numberOrNull("cosine")
    public val top1: Double? = fields.numberOrNull("top1")
    public val kl: Double? = fields.numberOrNull("kl")
    public val perplexityRatio: Double? = fields.numberOrNull("perplexity_ratio")
    /** A changed top-1 counts only where the reference's lead exceeds this many logits. */
    public val margin: Double = fields.number("margin", 0.0)

    init {
        fields.end()
    }
}
