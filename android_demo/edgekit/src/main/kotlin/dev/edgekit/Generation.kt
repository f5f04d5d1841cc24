package dev.edgekit

import dev.edgekit.tokenizer.TextStream
import dev.edgekit.tokenizer.Tokenizer

/**
 * How text is generated: at most [maxNewTokens]; [chat] answers the prompt in the model's chat template instead of continuing it (null:
 * where there is a template), [system] begins the chat; [stop] are texts that end it and are not given out; [temperature] 0 takes the
 * likeliest token; [topK] 0 and [topP] 1 consider all tokens; without [seed] every text is another one. A model with an encoder turns
 * the prompt into another text; [begin] is what that starts with (a language's token, for one), as the model itself says by default.
 */
public data class GenerateOptions(
    val maxNewTokens: Int = 256,
    val chat: Boolean? = null,
    val system: String? = null,
    val stop: List<String> = emptyList(),
    val temperature: Float = 0f,
    val topK: Int = 0,
    val topP: Float = 1f,
    val seed: Long? = null,
    val begin: String = "",
) {
    /** Throws [UsageException] for what no text can be made with. */
    internal fun check(prompt: String) {
        if (prompt.isEmpty()) throw UsageException("prompt: is empty; give some text")
        if (maxNewTokens < 1) throw UsageException("maxNewTokens: $maxNewTokens is less than 1")
        if (stop.any { it.isEmpty() }) throw UsageException("stop: an empty string would stop at once; leave it out")
        sampling()
    }

    internal fun sampling(): Sampling = Sampling(temperature, topK, topP, seed)
}

/**
 * One prompt, ready to be answered: the [ids] that the decoder is fed, and the text that they continue or the source that they answer.
 * Throws [UsageException] when it does not fit, or the model of [info] has no place for what is asked.
 */
internal class Prompt(private val tokenizer: Tokenizer, text: String, private val options: GenerateOptions, info: DecoderInfo) {
    private val encoder = info.encoder
    private val limit = info.maxLength
    private val chats = if (encoder == null) options.chat ?: tokenizer.hasChatTemplate else false
    private val source: IntArray? = encoder?.let { tokenizer.encode(text) }
    val ids: IntArray = when {
        encoder != null -> start(encoder)
        chats -> tokenizer.chat(messages(text))
        else -> tokenizer.encode(text)
    }

    /** Slots of the cache that the prompt and its answer need. */
    val slots: Int = minOf(limit.toLong(), ids.size.toLong() + options.maxNewTokens).toInt()

    init {
        if (encoder != null && (options.chat == true || options.system != null)) {
            throw UsageException("chat, system: the model turns one text into another and has neither; leave them out")
        }
        if (encoder == null && options.begin.isNotEmpty()) {
            throw UsageException("begin: the model continues the prompt; put the words at its end")
        }
        if (options.system != null && !chats) {
            throw UsageException("system: the prompt is continued as it is, without a chat; put the words into the prompt")
        }
        if (ids.isEmpty() || source?.isEmpty() == true) throw UsageException("prompt: has no tokens; give some text")
        if (ids.size >= limit) {
            throw UsageException("prompt: ${ids.size} tokens; the context holds $limit, the answer included; give a shorter one")
        }
    }

    /**
     * Hands the answer over in pieces of text, until the model ends it, a stop string or a limit is reached, or [give] returns false.
     * Throws [Stopped] when the session was stopped.
     */
    fun answer(decoder: Decoder, ends: List<Long>, give: (String) -> Boolean) {
        val sampling = options.sampling()
        val stream = TextStream(tokenizer, if (chats || encoder != null) IntArray(0) else ids)
        val text = StopStrings(options.stop)
        val token = IntArray(1)
        var made = 0
        if (source == null) decoder.reset() else decoder.encode(inputsOf(source))
        decoder.feed(ids)
        while (true) {
            token[0] = sampling.draw(decoder.logits)
            if (token[0].toLong() in ends) break
            made++
            val piece = text.push(stream.push(token[0]))
            if (piece.isNotEmpty() && !give(piece) || text.hit) return
            if (made == options.maxNewTokens || decoder.length == decoder.slots) break
            decoder.feed(token)
        }
        var rest = text.push(stream.rest())
        if (!text.hit) rest += text.rest()
        if (rest.isNotEmpty()) give(rest)
    }

    private fun start(encoder: EncoderInfo): IntArray {
        val own = ints(encoder.startTokens.toLongArray())
        return if (options.begin.isEmpty()) own else intArrayOf(own[0], *tokenizer.encode(options.begin, addSpecialTokens = false))
    }

    private fun inputsOf(source: IntArray): Map<String, Tensor> {
        val length = source.size.toLong()
        return mapOf(
            "input_ids" to Tensor.of(LongArray(source.size) { source[it].toLong() }, 1, length),
            "attention_mask" to Tensor.of(LongArray(source.size) { 1 }, 1, length),
        )
    }

    private fun messages(text: String): List<Pair<String, String>> =
        listOfNotNull(options.system?.let { "system" to it }, "user" to text)
}

/** Holds text back while it may be the beginning of a stop string. */
internal class StopStrings(private val stops: List<String>) {
    private var held = ""

    /** A stop string has come; nothing is given out any more. */
    var hit = false
        private set

    /** What can be given out now. */
    fun push(piece: String): String {
        held += piece
        val found = stops.map { held.indexOf(it) }.filter { it >= 0 }
        hit = found.isNotEmpty()
        val begun = stops.maxOfOrNull { stop -> (1 until stop.length).lastOrNull { held.endsWith(stop.substring(0, it)) } ?: 0 } ?: 0
        val cut = if (hit) found.min() else held.length - begun
        return held.substring(0, cut).also { held = held.substring(cut) }
    }

    /** What was held back for a stop string that never came. */
    fun rest(): String = held
}
