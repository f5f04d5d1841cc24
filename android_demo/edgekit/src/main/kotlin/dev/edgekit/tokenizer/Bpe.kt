package dev.edgekit.tokenizer

import dev.edgekit.BundleException

/**
 * Byte pair encoding: characters, of which neighbours are joined in the order that the merges have.
 *
 * [unknown] is the id for characters that are no tokens: [DROPPED] leaves them out, [MISSING] is an error. [bytes] holds the ids of
 * `<0x00>` to `<0xFF>`, -1 for those that are no tokens, and is null without byte_fallback.
 */
internal class Bpe private constructor(
    private val vocabulary: Vocabulary,
    private val merges: Merges,
    private val prefix: String,
    private val suffix: String,
    private val unknown: Int,
    private val fuseUnknown: Boolean,
    private val bytes: IntArray?,
    private val ignoreMerges: Boolean,
) : Model {
    private val cache = WordCache()

    /** Ids of the tokens of one UTF-16 unit, -1 where there is none. */
    private val single = IntArray(0x10000) { if (it in 0xD800..0xDFFF) -1 else vocabulary.id(it.toChar().toString()) ?: -1 }

    override val size: Int get() = vocabulary.size

    override fun id(token: String): Int? = vocabulary.id(token)

    override fun token(id: Int): String? = vocabulary.token(id)

    override fun tokenize(word: String, out: IntList) {
        val whole = if (ignoreMerges) vocabulary.id(word) else null
        if (whole != null) out.add(whole) else cache.get(word, out) { merges.apply(symbols(word), it) }
    }

    /** The ids of the characters of [word]. */
    private fun symbols(word: String): IntList {
        val symbols = IntList(word.length)
        var waiting = false // an unknown character that was not written yet
        var at = 0
        while (at < word.length) {
            val end = at + Character.charCount(word.codePointAt(at))
            val id = symbol(word, at, end)
            if (id >= 0) {
                if (waiting) symbols.add(unknown)
                waiting = false
                symbols.add(id)
            } else if (!addBytes(word, at, end, symbols) && unknown != DROPPED) {
                if (unknown == MISSING) throw BundleException("tokenizer.json model: \"unk_token\" is needed and is no token; export the model again")
                if (waiting && !fuseUnknown) symbols.add(unknown)
                waiting = true
            }
            at = end
        }
        if (waiting) symbols.add(unknown)
        return symbols
    }

    private fun symbol(word: String, start: Int, end: Int): Int {
        val plain = prefix.isEmpty() && suffix.isEmpty() && end - start == 1
        return if (plain) single[word[start].code] else vocabulary.id(affixed(word, start, end)) ?: -1
    }

    private fun affixed(word: String, start: Int, end: Int): String {
        val text = word.substring(start, end)
        return (if (start > 0) prefix + text else text) + if (end == word.length) suffix else ""
    }

    /** Whether the bytes of one character are tokens. An unknown character before it stays waiting, as in the library. */
    private fun addBytes(word: String, start: Int, end: Int, symbols: IntList): Boolean {
        val ids = bytes ?: return false
        val text = affixed(word, start, end)
        forEachCodePoint(text) { point -> Utf8.each(point) { if (ids[it] < 0) return false } }
        forEachCodePoint(text) { point -> Utf8.each(point) { symbols.add(ids[it]) } }
        return true
    }

    companion object {
        private const val DROPPED = -1
        private const val MISSING = -2

        fun read(part: Part): Bpe {
            if ((part.decimalOrNull("dropout") ?: 0.0) != 0.0) part.refuse("dropout, which makes the tokens random,")
            val vocabulary = Vocabulary.read(part)
            val prefix = part.textOrNull("continuing_subword_prefix") ?: ""
            val unknown = part.textOrNull("unk_token")
            return Bpe(
                vocabulary,
                readMerges(part, vocabulary, prefix),
                prefix,
                part.textOrNull("end_of_word_suffix") ?: "",
                if (unknown == null) DROPPED else vocabulary.id(unknown) ?: MISSING,
                part.flagOrNull("fuse_unk") ?: false,
                if (part.flagOrNull("byte_fallback") == true) byteIds(vocabulary::id) else null,
                part.flagOrNull("ignore_merges") ?: false,
            )
        }

        private fun readMerges(part: Part, vocabulary: Vocabulary, prefix: String): Merges {
            val list = part.list("merges")
            val merges = Merges(list.size)
            for (item in list) {
                if (item is String && item.startsWith("#version")) continue
                val pair = (item as? String)?.split(' ') ?: item as? List<*>
                if (pair?.size != 2) part.broken("the merge $item is not two tokens")
                val left = pair[0] as? String ?: part.broken("the merge $item is not two tokens")
                val right = pair[1] as? String ?: part.broken("the merge $item is not two tokens")
                if (!right.startsWith(prefix)) part.refuse("a merge with \"$right\", which lacks the continuing_subword_prefix,")
                fun id(token: String): Int =
                    vocabulary.id(token) ?: part.broken("the merge of \"$left\" and \"$right\" needs \"$token\", which is no token")
                merges.add(id(left), id(right), id(left + right.substring(prefix.length)))
            }
            return merges
        }
    }
}

/** The ids of `<0x00>` to `<0xFF>`, -1 for those that are no tokens. */
internal fun byteIds(id: (String) -> Int?): IntArray = IntArray(256) { id("<0x%02X>".format(java.util.Locale.ROOT, it)) ?: -1 }
