package dev.edgekit

import ai.onnxruntime.OnnxTensor
import java.io.Closeable
import java.nio.ByteBuffer
import java.nio.ByteOrder

/**
 * A language model with a key-value cache of [slots] tokens.
 *
 * Past and present keys and values of a layer are one buffer, which the graph writes in place; a state that is replaced has two, of which
 * each run reads one and writes the other. Nothing is copied, and a single token allocates no more than ONNX Runtime's Java API does
 * itself. With an [encoder], [encode] says what is answered. For one thread at a time.
 *
 * Throws [UsageException] when the cache does not fit into memory.
 */
internal class Decoder(
    private val session: Session,
    private val info: DecoderInfo,
    val slots: Int,
    private val encoder: Session? = null,
) : Closeable {
    /** Tokens in the cache. */
    var length = 0
        private set

    /** Logits of the token that was fed last; those of tokens that are never chosen are lowest. */
    val logits = FloatArray(info.vocabSize)

    private val owned = ArrayList<OnnxTensor>()
    private val crossed = ArrayList<OnnxTensor>()
    private val never = info.encoder?.suppressedTokens.orEmpty().map { it.toInt() }

    // Two ways around of the states; [now] says which of them reads what is now.
    private val given = List(2) { LinkedHashMap(session.keepInput()) }
    private val cache = List(2) { LinkedHashMap<String, OnnxTensor>() }
    private val last: List<Map<String, OnnxTensor>>
    private val states = ArrayList<List<ByteBuffer>>()
    private var now = 0
    private val ids = buffer(Spec.PROMPT_PIECE.toLong() * Long.SIZE_BYTES)
    private val ones = buffer(slots.toLong() * Long.SIZE_BYTES)
    private val row = buffer(info.vocabSize.toLong() * Float.SIZE_BYTES)
    private val rowValues = row.asFloatBuffer()
    private val single: OnnxTensor
    private var rows = buffer(0)

    init {
        for (slot in 0 until slots) ones.putLong(slot * Long.SIZE_BYTES, 1)
        for (layer in info.kvHeads.indices) {
            val heads = info.kvHeads[layer].toLong()
            val dim = info.headDim[layer].toLong()
            for (part in if (heads > 0) listOf("key", "value") else emptyList()) {
                val memory = buffer(heads * slots * dim * Float.SIZE_BYTES)
                val tensor = owned(DType.FLOAT32, memory, 1, heads, slots.toLong(), dim)
                given.forEach { it["past_key_values.$layer.$part"] = tensor }
                cache.forEach { it["present.$layer.$part"] = tensor }
            }
        }
        for (state in info.states) {
            val memory = List(2) { buffer(state.dims.fold(Float.SIZE_BYTES.toLong(), Long::times)) }
            val pair = memory.map { owned(DType.FLOAT32, it, 1, *state.dims.toLongArray()) }
            for (turn in 0..1) {
                given[turn][state.input] = pair[turn]
                cache[turn][state.output] = pair[1 - turn]
            }
            states.add(memory)
        }
        val only = owned(DType.FLOAT32, row, 1, 1, info.vocabSize.toLong())
        last = cache.map { it + ("logits" to only) }
        single = owned(DType.INT64, part(ids, Long.SIZE_BYTES), 1, 1)
    }

    /** Forgets all tokens; the buffers stay. */
    fun reset() {
        length = 0
        for (pair in states) pair[now].duplicate().put(ByteArray(pair[now].capacity()))
    }

    /**
     * Runs the encoder on one source, by its inputs' names, and forgets all tokens: what follows answers it. Throws [UsageException] for a
     * source that the encoder cannot read.
     */
    fun encode(source: Map<String, Tensor>) {
        reset()
        val wanted = checkNotNull(info.encoder)
        val mask = source["attention_mask"] ?: throw UsageException("attention_mask: the encoder's is missing")
        if (wanted.maxLength > 0 && mask.count > wanted.maxLength) {
            throw UsageException("a source of ${mask.count} tokens; the encoder reads ${wanted.maxLength} at most, give a shorter one")
        }
        val values = checkNotNull(encoder).run(source, wanted.crossed().map { it.first }) + (Spec.CROSS_MASK to mask)
        forgetSource()
        for ((name, value) in values) {
            val tensor = session.tensor(value).also { crossed.add(it) }
            given.forEach { it[name] = tensor }
        }
    }

    /** Feeds [tokens], in pieces of [Spec.PROMPT_PIECE]; [logits] are then those of the last. Throws [UsageException] when the context is full. */
    fun feed(tokens: IntArray) {
        checkRoom(tokens.size)
        for (start in tokens.indices step Spec.PROMPT_PIECE) run(tokens, start, minOf(start + Spec.PROMPT_PIECE, tokens.size), 1, last[now])
        rowValues.rewind()
        rowValues.get(logits)
        for (token in never) logits[token] = Float.NEGATIVE_INFINITY
    }

    /** Feeds tokens [start] to [stop] at once and hands over the logits of each; the array is the same every time. */
    fun feedAll(tokens: IntArray, start: Int, stop: Int, seen: (position: Int, logits: FloatArray) -> Unit) {
        checkRoom(stop - start)
        val count = stop - start
        val bytes = count.toLong() * info.vocabSize * Float.SIZE_BYTES
        if (rows.capacity() < bytes) rows = buffer(bytes)
        session.tensor(DType.FLOAT32, part(rows, bytes.toInt()), 1, count.toLong(), info.vocabSize.toLong()).use { all ->
            run(tokens, start, stop, 0, cache[now] + ("logits" to all))
        }
        val values = rows.asFloatBuffer()
        for (position in start until stop) {
            values.get(logits)
            seen(position, logits)
        }
    }

    override fun close() {
        forgetSource()
        owned.forEach { it.close() }
    }

    private fun forgetSource() {
        crossed.forEach { it.close() }
        crossed.clear()
    }

    private fun run(tokens: IntArray, start: Int, stop: Int, keep: Long, into: Map<String, OnnxTensor>) {
        val count = stop - start
        for (index in 0 until count) ids.putLong(index * Long.SIZE_BYTES, tokens[start + index].toLong())
        val total = length + count
        val given = given[now]
        session.tensor(DType.INT64, part(ones, total * Long.SIZE_BYTES), 1, total.toLong()).use { mask ->
            given["attention_mask"] = mask
            if (count == 1) {
                given["input_ids"] = single
                session.runBound(given, into, keep)
            } else {
                session.tensor(DType.INT64, part(ids, count * Long.SIZE_BYTES), 1, count.toLong()).use {
                    given["input_ids"] = it
                    session.runBound(given, into, keep)
                }
            }
        }
        now = 1 - now
        length = total
    }

    private fun checkRoom(count: Int) {
        if (length + count > slots) throw UsageException("context full: $length + $count tokens, $slots slots")
    }

    private fun owned(dtype: DType, memory: ByteBuffer, vararg shape: Long): OnnxTensor =
        session.tensor(dtype, memory, *shape).also { owned.add(it) }

    private fun part(memory: ByteBuffer, bytes: Int): ByteBuffer = memory.duplicate().also { it.limit(bytes) }

    private fun buffer(bytes: Long): ByteBuffer {
        if (bytes > Int.MAX_VALUE) {
            throw UsageException("context of $slots tokens: a buffer of $bytes bytes is too large; ask for fewer tokens")
        }
        return try {
            ByteBuffer.allocateDirect(bytes.toInt()).order(ByteOrder.nativeOrder())
        } catch (error: OutOfMemoryError) {
            close()
            throw UsageException("context of $slots tokens: there is not enough memory for its cache; ask for fewer tokens", error)
        }
    }

    companion object {
        /** The likeliest token: the lowest of equals, the first NaN where there is one. */
        fun likeliest(logits: FloatArray): Int {
            var best = 0
            for (index in logits.indices) {
                val value = logits[index]
                if (value.isNaN()) return index
                if (value > logits[best]) best = index
            }
            return best
        }
    }
}

/** Name, heads and their size of each tensor of cross-attention. */
internal fun EncoderInfo.crossed(): List<Triple<String, Long, Long>> = heads.indices.flatMap { layer ->
    listOf("key", "value").map { Triple("cross.$layer.$it", heads[layer], headDim[layer]) }
}
