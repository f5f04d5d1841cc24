package dev.edgekit.tokenizer

/**
 * A stretch of the text on its way to tokens.
 *
 * [id] is its token when one was recognized already, else -1. [begin] is how many of its leading UTF-16 units come from the first
 * character of the input, 0 when its first one does not: Metaspace's scheme "first" asks for it.
 */
internal class Piece(val text: String, val id: Int, val begin: Int) {
    /** Changed by a function that takes one character after another, or nearly so. */
    inline fun map(change: (String) -> String): Piece =
        Piece(change(text), id, if (begin == 0) 0 else change(text.substring(0, begin)).length)

    fun slice(start: Int, end: Int, id: Int = -1): Piece = Piece(text.substring(start, end), id, maxOf(minOf(begin, end) - start, 0))

    /** With [prefix] in front: what is put there stands where the first character stood. */
    fun prepend(prefix: String): Piece = Piece(prefix + text, id, if (begin == 0) 0 else begin + prefix.length)

    companion object {
        fun whole(text: String): Piece =
            Piece(text, -1, if (text.isEmpty()) 0 else Character.charCount(text.codePointAt(0)))
    }
}

/** Splits the pieces that are no tokens yet; what is empty is dropped. */
internal inline fun splitEach(pieces: List<Piece>, split: (Piece, MutableList<Piece>) -> Unit): List<Piece> {
    val found = ArrayList<Piece>(pieces.size)
    val parts = ArrayList<Piece>()
    for (piece in pieces) {
        if (piece.id >= 0) {
            found.add(piece)
            continue
        }
        parts.clear()
        split(piece, parts)
        parts.filterTo(found) { it.text.isNotEmpty() }
    }
    return found
}

/** What becomes of the delimiters that a text is split at. */
internal enum class Delimiters {
    REMOVED, ISOLATED, MERGED_WITH_PREVIOUS, MERGED_WITH_NEXT, CONTIGUOUS;

    companion object {
        fun read(part: Part, key: String): Delimiters = when (val name = part.text(key)) {
            "Removed" -> REMOVED
            "Isolated" -> ISOLATED
            "MergedWithPrevious" -> MERGED_WITH_PREVIOUS
            "MergedWithNext" -> MERGED_WITH_NEXT
            "Contiguous" -> CONTIGUOUS
            else -> part.refuse("the behavior \"$name\"")
        }
    }
}

/** The parts of one text, in order: start, end, and whether each is a delimiter. */
internal class Cuts {
    private val starts = IntList()
    private val ends = IntList()
    private val matches = IntList()

    fun add(start: Int, end: Int, isMatch: Boolean) {
        starts.add(start)
        ends.add(end)
        matches.add(if (isMatch) 1 else 0)
    }

    fun clear() {
        starts.clear()
        ends.clear()
        matches.clear()
    }

    /** Every character in [set] is a delimiter of its own. */
    fun at(set: CodePointSet, text: String) {
        var done = 0
        var at = 0
        while (at < text.length) {
            val point = text.codePointAt(at)
            val end = at + Character.charCount(point)
            if (point in set) {
                if (done < at) add(done, at, false)
                add(at, end, true)
                done = end
            }
            at = end
        }
        if (done < text.length) add(done, text.length, false)
    }

    fun split(piece: Piece, delimiters: Delimiters, invert: Boolean, out: MutableList<Piece>) {
        if (delimiters == Delimiters.MERGED_WITH_NEXT) return mergeWithNext(piece, invert, out)
        var previous = false
        var start = -1
        var end = -1
        for (index in 0 until starts.size) {
            val isMatch = (matches.values[index] == 1) != invert
            val joins = when (delimiters) {
                Delimiters.CONTIGUOUS -> isMatch == previous
                Delimiters.MERGED_WITH_PREVIOUS -> isMatch && !previous
                else -> false
            }
            if (start < 0 || !joins) {
                if (start >= 0) out.add(piece.slice(start, end))
                start = if (delimiters == Delimiters.REMOVED && isMatch) -1 else starts.values[index]
            }
            end = ends.values[index]
            previous = isMatch
        }
        if (start >= 0) out.add(piece.slice(start, end))
    }

    private fun mergeWithNext(piece: Piece, invert: Boolean, out: MutableList<Piece>) {
        val found = ArrayList<Piece>()
        var previous = false
        var start = -1
        var end = -1
        for (index in starts.size - 1 downTo 0) {
            val isMatch = (matches.values[index] == 1) != invert
            if (start < 0 || !isMatch || previous) {
                if (start >= 0) found.add(piece.slice(start, end))
                end = ends.values[index]
            }
            start = starts.values[index]
            previous = isMatch
        }
        if (start >= 0) found.add(piece.slice(start, end))
        out.addAll(found.asReversed())
    }
}
