package dev.edgekit.tokenizer

import java.util.concurrent.ConcurrentHashMap

/** What cuts a word into tokens. */
internal interface Model {
    /** How many tokens it has: added tokens that it lacks are numbered from here. */
    val size: Int

    fun id(token: String): Int?

    fun token(id: Int): String?

    /** Adds the tokens of [word], which is not empty, to [out]. */
    fun tokenize(word: String, out: IntList)
}

/** The model of tokenizer.json. Throws UnsupportedException for one that is not known. */
internal fun model(part: Part): Model = when (part.type) {
    "BPE" -> Bpe.read(part)
    "WordPiece" -> WordPiece.read(part)
    "WordLevel" -> WordLevel.read(part)
    "Unigram" -> Unigram.read(part)
    else -> part.refuse("the model \"${part.type}\"")
}

/** Tokens and their ids. */
internal class Vocabulary(entries: Map<String, Int>, part: Part) {
    private val ids: Map<String, Int> = entries
    private val tokens = arrayOfNulls<String>(1 + (entries.values.maxOrNull() ?: -1))

    init {
        for ((token, id) in entries) {
            // The library would choose by chance what such an id means.
            if (tokens[id] != null) part.refuse("one id, $id, for two tokens")
            tokens[id] = token
        }
    }

    val size: Int get() = ids.size

    fun id(token: String): Int? = ids[token]

    fun token(id: Int): String? = tokens.getOrNull(id)

    companion object {
        private const val MAX_ID = 1 shl 24 // far more than any model has: one broken id must not take all memory

        fun read(part: Part): Vocabulary {
            val given = part.map("vocab")
            val entries = HashMap<String, Int>(given.size * 2)
            for ((token, id) in given) {
                if (id !is Long || id !in 0..MAX_ID) part.broken("the id of \"$token\" is $id")
                entries[token as String] = id.toInt()
            }
            return Vocabulary(entries, part)
        }
    }
}

/** Words that were cut before: most of a text is words that come again. */
internal class WordCache {
    private val words = ConcurrentHashMap<String, IntArray>()

    fun get(word: String, out: IntList, cut: (IntList) -> Unit) {
        val known = words[word]
        if (known != null) return out.addAll(known)
        val start = out.size
        cut(out)
        if (word.length < MAX_LENGTH && words.size < MAX_WORDS) words[word] = out.values.copyOfRange(start, out.size)
    }

    private companion object {
        const val MAX_LENGTH = 256
        const val MAX_WORDS = 20_000
    }
}
