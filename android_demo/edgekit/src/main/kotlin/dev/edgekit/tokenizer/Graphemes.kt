package dev.edgekit.tokenizer

/** Grapheme clusters (UAX 29, extended): what a reader takes for one character. */
internal object Graphemes {
    private const val CR = 1
    private const val LF = 2
    private const val CONTROL = 3
    private const val ZWJ = 4
    private const val LINKER = 5
    private const val CONJUNCT_EXTEND = 6
    private const val EXTEND = 7
    private const val SPACING_MARK = 8
    private const val PREPEND = 9
    private const val REGIONAL = 10
    private const val L = 11
    private const val V = 12
    private const val T = 13
    private const val LV = 14
    private const val LVT = 15
    private const val CONSONANT = 16
    private const val PICTURE = 17

    private val kinds: ByteArray by lazy {
        val numbers = Numbers(UnicodeTables.CLUSTERS)
        val all = ByteArray(CodePointSet.END)
        var point = 0
        while (numbers.more) {
            val run = numbers.next()
            all.fill((run % 32).toByte(), point, point + run / 32)
            point += run / 32
        }
        all
    }

    /** Calls [action] with start and end of every cluster of [text]. */
    inline fun each(text: String, action: (start: Int, end: Int) -> Unit) {
        var start = 0
        while (start < text.length) {
            val end = end(text, start)
            action(start, end)
            start = end
        }
    }

    fun end(text: String, start: Int): Int {
        val state = Cluster()
        var at = start
        while (at < text.length) {
            val point = text.codePointAt(at)
            val kind = kind(point)
            if (at > start && !state.takes(kind)) return at
            state.add(kind)
            at += Character.charCount(point)
        }
        return at
    }

    private fun kind(point: Int): Int = when (point) {
        in 0x20..0x7E -> 0
        in 0xAC00..0xD7A3 -> if ((point - 0xAC00) % 28 == 0) LV else LVT
        else -> kinds[point].toInt()
    }

    /** What was seen of one cluster. */
    private class Cluster {
        private var last = 0
        private var regionals = 0
        private var picture = false // a picture, then what extends it, then perhaps a joiner
        private var conjunct = false // a consonant, then only what extends or links it
        private var linked = false // and a linker was among that

        fun add(kind: Int) {
            val extends = kind == EXTEND || kind == CONJUNCT_EXTEND || kind == LINKER
            regionals = if (kind == REGIONAL) regionals + 1 else 0
            picture = kind == PICTURE || picture && last != ZWJ && (extends || kind == ZWJ)
            linked = kind != CONSONANT && conjunct && (linked || kind == LINKER)
            conjunct = kind == CONSONANT || conjunct && (kind == CONJUNCT_EXTEND || kind == LINKER || kind == ZWJ)
            last = kind
        }

        fun takes(kind: Int): Boolean = when {
            last == CR -> kind == LF
            last == LF || last == CONTROL || kind == CR || kind == LF || kind == CONTROL -> false
            kind == EXTEND || kind == CONJUNCT_EXTEND || kind == LINKER || kind == ZWJ || kind == SPACING_MARK -> true
            last == PREPEND -> true
            last == L -> kind == L || kind == V || kind == LV || kind == LVT
            last == LV || last == V -> kind == V || kind == T
            last == LVT || last == T -> kind == T
            kind == PICTURE -> picture && last == ZWJ
            kind == CONSONANT -> conjunct && linked
            kind == REGIONAL -> last == REGIONAL && regionals % 2 == 1
            else -> false
        }
    }
}
