package dev.edgekit.tokenizer

import dev.edgekit.BundleException

/** SentencePiece's unigram model: of all ways to cut a word into tokens the one whose scores have the largest sum (Viterbi). */
internal class Unigram private constructor(
    private val tokens: Array<String>,
    private val scores: DoubleArray,
    private val unknown: Int,
    byteFallback: Boolean,
) : Model {
    private val ids = HashMap<String, Int>(tokens.size * 2)
    private val trie = CharTrie(tokens)
    private val unknownScore = (scores.minOrNull() ?: Double.POSITIVE_INFINITY) - UNKNOWN_PENALTY
    private val cache = WordCache()
    private val bytes: IntArray?

    init {
        tokens.forEachIndexed { id, token -> ids[token] = id }
        bytes = if (byteFallback) byteIds(ids::get) else null
    }

    override val size: Int get() = tokens.size

    override fun id(token: String): Int? = ids[token]

    override fun token(id: Int): String? = tokens.getOrNull(id)

    override fun tokenize(word: String, out: IntList) = cache.get(word, out) { cut(word, it) }

    private fun cut(word: String, out: IntList) {
        val starts = IntArray(word.length + 1) { -1 } // where the best token that ends here begins
        val best = IntArray(word.length + 1)
        search(word, starts, best)
        val ends = IntList()
        var end = word.length
        while (end > 0) {
            ends.add(end)
            // Unknown characters side by side are one piece.
            val isUnknown = best[end] == unknown
            end = starts[end]
            while (isUnknown && end > 0 && best[end] == unknown) end = starts[end]
        }
        var start = 0
        for (index in ends.size - 1 downTo 0) {
            add(word.substring(start, ends.values[index]), out)
            start = ends.values[index]
        }
    }

    private fun search(word: String, starts: IntArray, best: IntArray) {
        val sums = DoubleArray(word.length + 1)
        var at = 0
        while (at < word.length) {
            val width = Character.charCount(word.codePointAt(at))
            val sum = sums[at]
            var isToken = false
            trie.prefixes(word, at) { end, id ->
                if (starts[end] < 0 || scores[id] + sum > sums[end]) {
                    sums[end] = scores[id] + sum
                    starts[end] = at
                    best[end] = id
                }
                isToken = isToken || end == at + width
            }
            if (!isToken && (starts[at + width] < 0 || unknownScore + sum > sums[at + width])) {
                sums[at + width] = unknownScore + sum
                starts[at + width] = at
                best[at + width] = needUnknown()
            }
            at += width
        }
    }

    private fun needUnknown(): Int =
        if (unknown >= 0) unknown else throw BundleException("tokenizer.json model: \"unk_id\" is needed and missing; export the model again")

    private fun add(piece: String, out: IntList) {
        val id = ids[piece]
        if (id != null) return out.add(id)
        val all = bytes
        val start = out.size
        if (all != null) {
            var complete = true
            forEachCodePoint(piece) { point -> Utf8.each(point) { complete = complete && all[it] >= 0 } }
            if (complete) forEachCodePoint(piece) { point -> Utf8.each(point) { out.add(all[it]) } }
        }
        if (out.size == start) out.add(needUnknown())
    }

    companion object {
        private const val UNKNOWN_PENALTY = 10.0

        fun read(part: Part): Unigram {
            val vocabulary = part.list("vocab")
            val tokens = Array(vocabulary.size) { "" }
            val scores = DoubleArray(vocabulary.size)
            vocabulary.forEachIndexed { id, entry ->
                val pair = entry as? List<*>
                tokens[id] = pair?.getOrNull(0) as? String ?: part.broken("\"vocab\"[$id] is not a token and its score")
                scores[id] = (pair.getOrNull(1) as? Number)?.toDouble() ?: part.broken("\"vocab\"[$id] is not a token and its score")
            }
            val unknown = part.numberOrNull("unk_id")
            if (unknown != null && unknown >= tokens.size) part.broken("\"unk_id\" is $unknown of ${tokens.size} tokens")
            return Unigram(tokens, scores, unknown ?: -1, part.flagOrNull("byte_fallback") ?: false)
        }
    }
}

/** Which tokens begin at a place of a text: a hash table from a node and a UTF-16 unit to the next node. */
internal class CharTrie(tokens: Array<String>) {
    private var keys = LongArray(1 shl 10) { -1 }
    private var nodes = IntArray(1 shl 10)
    private val ids = IntList() // of the token that ends at a node, or -1

    init {
        ids.add(-1)
        tokens.forEachIndexed { id, token ->
            var node = 0
            for (c in token) node = child(node, c).let { if (it >= 0) it else add(node, c) }
            if (node > 0) ids.values[node] = id
        }
    }

    inline fun prefixes(text: String, start: Int, action: (end: Int, id: Int) -> Unit) {
        var node = 0
        for (at in start until text.length) {
            node = child(node, text[at])
            if (node < 0) return
            if (id(node) >= 0) action(at + 1, id(node))
        }
    }

    fun id(node: Int): Int = ids.values[node]

    fun child(node: Int, c: Char): Int {
        val slot = slot(key(node, c))
        return if (keys[slot] == -1L) -1 else nodes[slot]
    }

    private fun add(node: Int, c: Char): Int {
        if (ids.size * 2 > keys.size) grow()
        val slot = slot(key(node, c))
        keys[slot] = key(node, c)
        nodes[slot] = ids.size
        ids.add(-1)
        return nodes[slot]
    }

    private fun grow() {
        val oldKeys = keys
        val oldNodes = nodes
        keys = LongArray(oldKeys.size * 2) { -1 }
        nodes = IntArray(oldKeys.size * 2)
        for (index in oldKeys.indices) {
            if (oldKeys[index] == -1L) continue
            val slot = slot(oldKeys[index])
            keys[slot] = oldKeys[index]
            nodes[slot] = oldNodes[index]
        }
    }

    private fun key(node: Int, c: Char): Long = node.toLong() shl 16 or c.code.toLong()

    private fun slot(key: Long): Int {
        val mask = keys.size - 1
        var slot = (key * -0x61c8864680b583ebL ushr 32).toInt() and mask // Fibonacci hashing
        while (keys[slot] != -1L && keys[slot] != key) slot = slot + 1 and mask
        return slot
    }
}
