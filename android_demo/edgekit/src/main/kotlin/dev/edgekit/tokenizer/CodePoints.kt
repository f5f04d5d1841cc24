package dev.edgekit.tokenizer

/** Reads the numbers of [UnicodeTables]: five bits a digit, the lowest first; the sixth bit says that more follow. */
internal class Numbers(private val text: String) {
    private var at = 0

    val more: Boolean get() = at < text.length

    fun next(): Int {
        var value = 0
        var shift = 0
        while (true) {
            val digit = digit(text[at++])
            value = value or ((digit and 31) shl shift)
            if (digit < 32) return value
            shift += 5
        }
    }

    private fun digit(c: Char): Int = when (c) {
        in 'A'..'Z' -> c - 'A'
        in 'a'..'z' -> c - 'a' + 26
        in '0'..'9' -> c - '0' + 52
        '+' -> 62
        else -> 63
    }
}

/**
 * A set of code points. [edges] are where it begins and ends, in turn, ascending: even places are the first code point inside, odd
 * ones the first outside.
 */
internal class CodePointSet(private val edges: IntArray) {
    /** One bit for each code point below 0x10000: most text never goes past it. */
    private val low: LongArray by lazy(LazyThreadSafetyMode.PUBLICATION) { bits() }

    operator fun contains(point: Int): Boolean =
        if (point < LOW) (low[point shr 6] ushr (point and 63)) and 1L != 0L else isInside(point)

    fun inverted(): CodePointSet {
        val from = if (edges.isNotEmpty() && edges[0] == 0) edges.copyOfRange(1, edges.size) else intArrayOf(0) + edges
        val whole = from.isNotEmpty() && from.last() == END
        return CodePointSet(if (whole) from.copyOf(from.size - 1) else from + END)
    }

    operator fun plus(other: CodePointSet): CodePointSet = merge(other) { mine, theirs -> mine || theirs }

    infix fun and(other: CodePointSet): CodePointSet = merge(other) { mine, theirs -> mine && theirs }

    private fun merge(other: CodePointSet, holds: (Boolean, Boolean) -> Boolean): CodePointSet {
        val all = (edges + other.edges).sortedArray()
        val result = ArrayList<Int>()
        var inside = false
        for (edge in all) {
            val now = holds(isInside(edge), other.isInside(edge))
            if (now != inside) result.add(edge)
            inside = now
        }
        return CodePointSet(result.toIntArray())
    }

    private fun isInside(point: Int): Boolean {
        val found = edges.binarySearch(point)
        val last = if (found >= 0) found else -found - 2
        return last >= 0 && last and 1 == 0
    }

    private fun bits(): LongArray {
        val words = LongArray(LOW shr 6)
        for (index in edges.indices step 2) {
            val end = if (index + 1 < edges.size) edges[index + 1] else END
            for (point in edges[index] until minOf(end, LOW)) words[point shr 6] = words[point shr 6] or (1L shl (point and 63))
        }
        return words
    }

    companion object {
        const val END = 0x110000
        private const val LOW = 0x10000

        val ALL = CodePointSet(intArrayOf(0, END))

        fun of(vararg points: Int): CodePointSet =
            points.fold(CodePointSet(IntArray(0))) { all, point -> all + range(point, point) }

        /** Both ends inside. */
        fun range(first: Int, last: Int): CodePointSet = CodePointSet(intArrayOf(first, last + 1))

        /** A set of [UnicodeTables]. */
        fun read(table: String): CodePointSet {
            val numbers = Numbers(table)
            val edges = ArrayList<Int>()
            var last = 0
            while (numbers.more) {
                last += numbers.next()
                edges.add(last)
            }
            return CodePointSet(edges.toIntArray())
        }
    }
}

/** What the tokenizers library thinks of each code point; see [UnicodeTables]. */
internal object Unicode {
    private val CATEGORIES = (
        "Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Co Cn"
        ).split(' ')

    val space: CodePointSet by lazy { CodePointSet.read(UnicodeTables.RUST_SPACE) }
    val word: CodePointSet by lazy { CodePointSet.read(UnicodeTables.RUST_WORD) }
    val numeric: CodePointSet by lazy { CodePointSet.read(UnicodeTables.NUMERIC) }
    val cleaned: CodePointSet by lazy { CodePointSet.read(UnicodeTables.CLEANED) }
    val bertAccent: CodePointSet by lazy { CodePointSet.read(UnicodeTables.BERT_ACCENT) }
    val mark: CodePointSet by lazy { CodePointSet.read(UnicodeTables.MARK) }
    val punctuation: CodePointSet by lazy { CodePointSet.read(UnicodeTables.PUNCTUATION) }
    val patternSpace: CodePointSet by lazy { CodePointSet.read(UnicodeTables.SPACE) }
    val patternWord: CodePointSet by lazy { CodePointSet.read(UnicodeTables.WORD) }

    private val lower: Map<Int, Int> by lazy {
        val numbers = Numbers(UnicodeTables.LOWER)
        val map = HashMap<Int, Int>()
        var point = 0
        while (numbers.more) {
            point += numbers.next()
            val zigzag = numbers.next()
            map[point] = point + if (zigzag and 1 == 0) zigzag / 2 else -(zigzag + 1) / 2
        }
        map
    }

    private val categories: Map<String, CodePointSet> by lazy {
        val edges = CATEGORIES.map { ArrayList<Int>() }
        val numbers = Numbers(UnicodeTables.CATEGORIES)
        var point = 0
        while (numbers.more) {
            val run = numbers.next()
            edges[run % 32].add(point)
            point += run / 32
            edges[run % 32].add(point)
        }
        CATEGORIES.zip(edges) { name, list -> name.lowercase() to CodePointSet(list.toIntArray()) }.toMap()
    }

    /** The set of `\p{name}`: a general category, its group (`L`), or a script; null when it is not known. */
    fun property(name: String): CodePointSet? {
        val key = name.lowercase()
        categories[key]?.let { return it }
        UnicodeTables.SCRIPTS[key]?.let { return CodePointSet.read(it) }
        val group = categories.filterKeys { key.length == 1 && it.startsWith(key) }.values
        return group.reduceOrNull { all, one -> all + one }
    }

    fun lowercase(text: String): String {
        val out = StringBuilder(text.length)
        forEachCodePoint(text) { point ->
            when {
                point < 0x80 -> out.append(if (point in 'A'.code..'Z'.code) (point + 32).toChar() else point.toChar())
                point == 0x130 -> out.append("i\u0307")
                else -> out.appendCodePoint(lower[point] ?: point)
            }
        }
        return out.toString()
    }
}

internal inline fun forEachCodePoint(text: String, action: (Int) -> Unit) {
    var at = 0
    while (at < text.length) {
        val point = text.codePointAt(at)
        at += Character.charCount(point)
        action(point)
    }
}

/** [text] without the code points in [dropped]. */
internal fun without(text: String, dropped: CodePointSet): String {
    val out = StringBuilder(text.length)
    forEachCodePoint(text) { if (it !in dropped) out.appendCodePoint(it) }
    return if (out.length == text.length) text else out.toString()
}

/** [text] where half a surrogate pair stands as U+FFFD, as UTF-8 writes it: the models know no half characters. */
internal fun wellFormed(text: String): String {
    if (text.indices.none { text[it].isSurrogate() }) return text
    val out = StringBuilder(text.length)
    forEachCodePoint(text) { out.appendCodePoint(if (it in 0xD800..0xDFFF) 0xFFFD else it) }
    return out.toString()
}
