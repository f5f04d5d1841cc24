package dev.edgekit.tokenizer

import dev.edgekit.BundleException

/** The id of `unk_token`, which the model needs for a word. */
private fun unknown(vocabulary: Vocabulary, token: String): Int = vocabulary.id(token)
    ?: throw BundleException("tokenizer.json model: the unk_token \"$token\" is needed and is no token; export the model again")

/** BERT's: of each word the longest beginning that is a token, then of the rest, which is marked by a prefix. */
internal class WordPiece private constructor(
    private val vocabulary: Vocabulary,
    private val unknownToken: String,
    private val prefix: String,
    private val maxLength: Int,
) : Model {
    private val cache = WordCache()

    override val size: Int get() = vocabulary.size

    override fun id(token: String): Int? = vocabulary.id(token)

    override fun token(id: Int): String? = vocabulary.token(id)

    override fun tokenize(word: String, out: IntList) = cache.get(word, out) {
        val found = IntList()
        if (word.codePointCount(0, word.length) <= maxLength && cut(word, found)) it.addAll(found.toArray())
        else it.add(unknown(vocabulary, unknownToken))
    }

    private fun cut(word: String, out: IntList): Boolean {
        var start = 0
        while (start < word.length) {
            val rest = if (start == 0) word else prefix + word.substring(start)
            val least = rest.length - (word.length - start)
            var end = rest.length
            var id: Int? = null
            while (end > least) {
                id = vocabulary.id(rest.substring(0, end))
                if (id != null) break
                end -= Character.charCount(rest.codePointBefore(end))
            }
            out.add(id ?: return false)
            start += end - least
        }
        return true
    }

    companion object {
        fun read(part: Part): WordPiece = WordPiece(
            Vocabulary.read(part),
            part.text("unk_token"),
            part.text("continuing_subword_prefix"),
            part.number("max_input_chars_per_word"),
        )
    }
}

/** Every word is a token, or unknown. */
internal class WordLevel private constructor(private val vocabulary: Vocabulary, private val unknownToken: String) : Model {
    override val size: Int get() = vocabulary.size

    override fun id(token: String): Int? = vocabulary.id(token)

    override fun token(id: Int): String? = vocabulary.token(id)

    override fun tokenize(word: String, out: IntList) = out.add(vocabulary.id(word) ?: unknown(vocabulary, unknownToken))

    companion object {
        fun read(part: Part): WordLevel = WordLevel(Vocabulary.read(part), part.text("unk_token"))
    }
}
