package dev.edgekit.tokenizer

/** Unicode normalization forms (UAX 15) over the tables of the tokenizers library, whose Unicode is older than any device's. */
internal class Normalization private constructor() {
    private val canonical = HashMap<Int, IntArray>()
    private val compatible = HashMap<Int, IntArray>()
    private val compositions = HashMap<Long, Int>()
    private val classes = HashMap<Int, Int>()

    init {
        readDecompositions()
        readClasses()
    }

    fun decompose(text: String, compatibility: Boolean): String {
        if (isAscii(text)) return text
        return string(decomposed(text, compatibility))
    }

    fun compose(text: String, compatibility: Boolean): String {
        if (isAscii(text)) return text
        return string(composed(decomposed(text, compatibility)))
    }

    private fun isAscii(text: String): Boolean = text.all { it < '\u0080' }

    private fun string(points: IntList): String = String(points.values, 0, points.size)

    private fun decomposed(text: String, compatibility: Boolean): IntList {
        val out = IntList(text.length + 16)
        forEachCodePoint(text) { expand(it, compatibility, out) }
        order(out)
        return out
    }

    private fun expand(point: Int, compatibility: Boolean, out: IntList) {
        if (point < 0x80) return out.add(point)
        if (point in HANGUL until HANGUL + HANGUL_COUNT) return expandHangul(point - HANGUL, out)
        val parts = canonical[point] ?: if (compatibility) compatible[point] else null
        if (parts == null) out.add(point) else parts.forEach { expand(it, compatibility, out) }
    }

    private fun expandHangul(index: Int, out: IntList) {
        out.add(LEADING + index / (VOWELS * TRAILS))
        out.add(VOWEL + index % (VOWELS * TRAILS) / TRAILS)
        if (index % TRAILS > 0) out.add(TRAIL + index % TRAILS)
    }

    /** Marks that follow one another are sorted by their class, equal ones staying in their order. */
    private fun order(points: IntList) {
        var start = 0
        while (start < points.size) {
            var end = start
            while (end < points.size && classOf(points.values[end]) > 0) end++
            if (end - start > 1) {
                val sorted = points.values.slice(start until end).sortedBy { classOf(it) }
                sorted.forEachIndexed { index, point -> points.values[start + index] = point }
            }
            start = end + 1
        }
    }

    private fun composed(points: IntList): IntList {
        val out = IntList(points.size)
        var starter = -1
        var last = 0 // class of what was written last after the starter; -1 directly after it
        for (index in 0 until points.size) {
            val point = points.values[index]
            val own = classOf(point)
            val both = if (starter >= 0 && last < own) pair(out.values[starter], point) else -1
            if (both >= 0) {
                out.values[starter] = both
                continue
            }
            out.add(point)
            if (own == 0) {
                starter = out.size - 1
                last = -1
            } else {
                last = own
            }
        }
        return out
    }

    private fun pair(first: Int, second: Int): Int {
        val lead = first - LEADING
        val vowel = second - VOWEL
        if (lead in 0 until LEADS && vowel in 0 until VOWELS) return HANGUL + (lead * VOWELS + vowel) * TRAILS
        val syllable = first - HANGUL
        val trail = second - TRAIL
        if (syllable in 0 until HANGUL_COUNT && syllable % TRAILS == 0 && trail in 1 until TRAILS) return first + trail
        return compositions[key(first, second)] ?: -1
    }

    private fun classOf(point: Int): Int = if (point < 0x300) 0 else classes[point] ?: 0

    private fun key(first: Int, second: Int): Long = first.toLong() shl 32 or second.toLong()

    private fun readDecompositions() {
        val numbers = Numbers(UnicodeTables.DECOMPOSITIONS)
        var point = 0
        while (numbers.more) {
            point += numbers.next()
            val kind = numbers.next()
            val parts = IntArray(kind / 4) { numbers.next() }
            if (kind and 2 != 0) compatible[point] = parts else canonical[point] = parts
            if (kind and 1 != 0) compositions[key(parts[0], parts[1])] = point
        }
    }

    private fun readClasses() {
        val numbers = Numbers(UnicodeTables.COMBINING)
        var start = 0
        while (numbers.more) {
            start += numbers.next()
            val length = numbers.next()
            val value = numbers.next()
            for (point in start until start + length) classes[point] = value
        }
    }

    companion object {
        val shared: Normalization by lazy { Normalization() }

        // Hangul syllables are numbered by their leading consonant, vowel and trailing consonant.
        private const val HANGUL = 0xAC00
        private const val LEADING = 0x1100
        private const val VOWEL = 0x1161
        private const val TRAIL = 0x11A7
        private const val LEADS = 19
        private const val VOWELS = 21
        private const val TRAILS = 28
        private const val HANGUL_COUNT = LEADS * VOWELS * TRAILS
    }
}

/** Integers that grow; [values] beyond [size] mean nothing. */
internal class IntList(capacity: Int = 16) {
    var values = IntArray(maxOf(capacity, 4))
        private set
    var size = 0
        private set

    fun add(value: Int) {
        if (size == values.size) values = values.copyOf(size * 2)
        values[size++] = value
    }

    fun addAll(more: IntArray) {
        for (value in more) add(value)
    }

    fun clear() {
        size = 0
    }

    fun toArray(): IntArray = values.copyOf(size)
}
