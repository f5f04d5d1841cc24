package dev.edgekit.tokenizer

/** One entry of `added_tokens`. */
internal data class AddedToken(
    val content: String,
    val singleWord: Boolean,
    val lstrip: Boolean,
    val rstrip: Boolean,
    val normalized: Boolean,
    val special: Boolean,
)

/**
 * The tokens that are found in the text before the model sees it: first those that are looked for in the text as it is, then those in
 * normalized text.
 */
internal class AddedTokens(parts: List<Part>, private val model: Model, private val normalizer: Normalizer, where: Part) {
    private val ids = HashMap<String, Int>()
    private val tokens = HashMap<Int, AddedToken>()
    private val normalizedTexts = HashMap<Int, String>()
    private val special = HashSet<String>()
    private val plain: TokenTrie?
    private val normalized: TokenTrie?

    init {
        var next = model.size
        for (token in parts.map { read(it) }.filter { it.content.isNotEmpty() }) {
            val known = ids[token.content]
            if (known != null && tokens[known] == token) continue
            val id = known ?: model.id(token.content) ?: next++
            if (token.normalized) {
                val text = normalizer.normalize(Piece.whole(token.content)).text
                if (text != token.content) normalizedTexts[id] = text
            }
            ids[token.content] = id
            if (token.special) special.add(token.content)
            tokens[id] = token
        }
        val (inNormalized, inPlain) = tokens.entries.partition { it.value.normalized }
        plain = trie(inPlain.map { it.value.content to it.key }, where)
        normalized = trie(inNormalized.map { (normalizedTexts[it.key] ?: it.value.content) to it.key }, where)
    }

    fun id(token: String): Int? = ids[token]

    /** The text that stands for [id] when it is decoded, or null when it is no added token. */
    fun text(id: Int): String? = tokens[id]?.let { normalizedTexts[id] ?: it.content }

    fun isSpecial(text: String): Boolean = text in special

    /** [text] as normalized pieces, among them those that are tokens already. */
    fun split(text: String): List<Piece> {
        val raw = splitEach(listOf(Piece.whole(text))) { piece, out -> split(piece, plain, out) }
        return splitEach(raw) { piece, out -> split(normalizer.normalize(piece), normalized, out) }
    }

    private fun read(part: Part): AddedToken = AddedToken(
        part.text("content"),
        part.flag("single_word"),
        part.flag("lstrip"),
        part.flag("rstrip"),
        part.flag("normalized"),
        part.flag("special"),
    )

    private fun trie(texts: List<Pair<String, Int>>, where: Part): TokenTrie? {
        if (texts.any { it.first.isEmpty() }) where.broken("an added token is empty once it is normalized")
        if (texts.distinctBy { it.first }.size < texts.size) where.refuse("two added tokens that are the same once they are normalized")
        return if (texts.isEmpty()) null else TokenTrie(texts)
    }

    private fun split(piece: Piece, trie: TokenTrie?, out: MutableList<Piece>) {
        if (trie == null) {
            out.add(piece)
            return
        }
        val text = piece.text
        var done = 0
        var found = trie.find(text, 0)
        while (found != null) {
            val token = tokens.getValue(found.id)
            if (!token.singleWord || standsAlone(text, found.start, found.end)) {
                val start = if (token.lstrip) maxOf(spaceBefore(text, found.start), done) else found.start
                val end = if (token.rstrip) spaceAfter(text, found.end) else found.end
                if (done < start) out.add(piece.slice(done, start))
                out.add(piece.slice(minOf(start, end), end, found.id))
                done = end
            }
            found = trie.find(text, found.end)
        }
        if (done < text.length) out.add(piece.slice(done, text.length))
    }

    private fun standsAlone(text: String, start: Int, end: Int): Boolean =
        (start == 0 || text.codePointBefore(start) !in Unicode.word) &&
            (end == text.length || text.codePointAt(end) !in Unicode.word)

    private fun spaceBefore(text: String, at: Int): Int {
        var start = at
        while (start > 0 && text[start - 1].code in Unicode.space) start--
        return start
    }

    private fun spaceAfter(text: String, at: Int): Int {
        var end = at
        while (end < text.length && text[end].code in Unicode.space) end++
        return end
    }
}

/** Finds texts in a text: the first one, and of those that begin there the longest. */
internal class TokenTrie(texts: List<Pair<String, Int>>) {
    class Match(val start: Int, val end: Int, val id: Int)

    private class Node {
        val children = HashMap<Char, Node>()
        var id = -1
    }

    private val root = Node()

    init {
        for ((text, id) in texts) {
            text.fold(root) { node, c -> node.children.getOrPut(c) { Node() } }.id = id
        }
    }

    fun find(text: String, from: Int): Match? {
        for (start in from until text.length) {
            var node = root.children[text[start]] ?: continue
            var at = start + 1
            var end = -1
            var id = -1
            while (true) {
                if (node.id >= 0) {
                    end = at
                    id = node.id
                }
                node = (if (at < text.length) node.children[text[at]] else null) ?: break
                at++
            }
            if (end >= 0) return Match(start, end, id)
        }
        return null
    }
}
