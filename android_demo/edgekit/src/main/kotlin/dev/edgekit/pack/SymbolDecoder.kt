package dev.edgekit.pack

/**
 * Streams of entropy-coded symbols: docs/pack.md, section 5. One object decodes one stream at a time.
 *
 * A table has an entry for each of its 4096 slots: symbol, frequency - 1 and the slot's place among the symbol's, from the lowest bits up
 * in 8, 12 and 12 bits.
 */
internal class SymbolDecoder {
    private val tables = IntArray(MOST_TABLES * SCALE)
    private val tableOfClass = IntArray(CLASSES)
    private val states = IntArray(MOST_LANES)

    private class Head(val lanes: Int, val kind: Int, val centre: Int, val escape: Int, val mask: Int)

    /**
     * The [size] symbols of [width] bits, one a byte, of the stream in [data] from [start] to [end]. [base] are another version's symbols
     * in the same places, or null. Throws [Damaged].
     */
    fun decode(data: ByteArray, start: Int, end: Int, size: Int, width: Int, base: ByteArray?): ByteArray {
        val source = ByteReader(data, start, end)
        val head = readHead(source, width)
        if (head.kind == BASE && base == null) throw Damaged("a stream refers to a base version, and there is none")
        val count = when (head.kind) {
            BASE -> minOf(MOST_TABLES, 1 shl width)
            NEIGHBOURS -> readClasses(source)
            else -> 1
        }
        for (table in 0 until count) readTable(source, head, table * SCALE)
        source.dropBits()
        val words = source.number(size)
        val escapes = source.number(size)
        for (lane in 0 until head.lanes) {
            val at = source.take(4)
            states[lane] = (data[at].toInt() and 0xff) or ((data[at + 1].toInt() and 0xff) shl 8) or
                ((data[at + 2].toInt() and 0xff) shl 16) or (data[at + 3].toInt() shl 24)
            if (states[lane] ushr 16 == 0) throw Damaged("a stream's parts do not fit together")
        }
        val firstWord = source.take(2 * words)
        val firstEscape = source.take(escapes)
        if (source.left != 0) throw Damaged("a stream's parts do not fit together")
        return symbols(Words(data, firstWord, firstEscape), Words(data, firstEscape, end), head, size, if (width == 8) 4 else 0, base)
    }

    /** Bytes of the stream that are used up one after the other. */
    private class Words(val data: ByteArray, var at: Int, val end: Int)

    private fun readHead(source: ByteReader, width: Int): Head {
        val flags = source.byte()
        val centre = source.byte()
        val lanes = 1 shl (flags and 7)
        val kind = (flags ushr 3) and 3
        if (lanes > MOST_LANES || kind > BASE || flags ushr 5 > 1 || (kind == NEIGHBOURS && lanes != MOST_LANES)) {
            throw Damaged("a stream of unknown kind $flags")
        }
        val escape = if (flags ushr 5 == 1) source.byte() else -1
        val mask = (1 shl width) - 1
        if (centre > mask || escape > mask) throw Damaged("a symbol is wider than its stream's")
        return Head(lanes, kind, centre, escape, mask)
    }

    /** How many tables there are. */
    private fun readClasses(source: ByteReader): Int {
        val count = (source.byte() and 15) + 1
        tableOfClass.fill(0)
        var before = 0
        for (table in 1 until count) {
            val start = source.byte()
            if (start <= before || start >= CLASSES) throw Damaged("classes of neighbourhoods are not in order")
            tableOfClass.fill(table, start, CLASSES)
            before = start
        }
        return count
    }

    private fun readTable(source: ByteReader, head: Head, start: Int) {
        val used = source.bits(8) + 1
        val k = source.bits(4)
        if (used > head.mask + 1 || k > SCALE_BITS) throw Damaged("a table of $used symbols of order $k")
        var slot = 0
        for (j in 0 until used) {
            val distance = (j + 1) / 2
            val symbol = (if (j % 2 == 1) head.centre + distance else head.centre - distance) and head.mask
            val frequency = source.golomb(k, SCALE - slot)
            for (i in 0 until frequency) tables[start + slot + i] = symbol or ((frequency - 1) shl 8) or (i shl 20)
            slot += frequency
        }
        if (slot != SCALE) throw Damaged("frequencies add up to $slot, not $SCALE")
    }

    private fun symbols(words: Words, escapes: Words, head: Head, size: Int, baseShift: Int, base: ByteArray?): ByteArray {
        val out = ByteArray(size)
        var activity = 0
        for (at in 0 until size step head.lanes) {
            val stop = minOf(size, at + head.lanes)
            if (head.kind == BASE) {
                for (i in at until stop) out[i] = step(i - at, ((base!![i].toInt() and 0xff) ushr baseShift) * SCALE, words)
            } else {
                val table = if (head.kind == NEIGHBOURS) tableOfClass[neighbourhood(activity)] * SCALE else 0
                for (i in at until stop) out[i] = step(i - at, table, words)
            }
            if (head.escape >= 0) unescape(out, at, stop, escapes, head)
            if (head.kind == NEIGHBOURS) activity += magnitudes(out, at, stop, head) - (activity ushr 2)
        }
        val whole = words.at == words.end && escapes.at == escapes.end
        if (!whole || (0 until head.lanes).any { states[it] != LOW }) throw Damaged("a stream does not end where its symbols do")
        return out
    }

    /** The next symbol of a lane. A state is 65,536 or more, without its sign, before and after. */
    private fun step(lane: Int, table: Int, words: Words): Byte {
        val before = states[lane]
        val entry = tables[table + (before and (SCALE - 1))]
        var state = (((entry ushr 8) and (SCALE - 1)) + 1) * (before ushr SCALE_BITS) + (entry ushr 20)
        if (state ushr 16 == 0) {
            if (words.at == words.end) throw Damaged("a stream ends before its last symbol")
            state = (state shl 16) or (words.data[words.at].toInt() and 0xff) or ((words.data[words.at + 1].toInt() and 0xff) shl 8)
            words.at += 2
        }
        states[lane] = state
        return entry.toByte()
    }

    private fun unescape(out: ByteArray, start: Int, stop: Int, escapes: Words, head: Head) {
        for (i in start until stop) {
            if (out[i].toInt() and 0xff != head.escape) continue
            if (escapes.at == escapes.end) throw Damaged("a stream has too few escaped symbols")
            out[i] = escapes.data[escapes.at++]
            if (out[i].toInt() and 0xff > head.mask) throw Damaged("a symbol is wider than its stream's")
        }
    }

    /** The sum of the symbols' distances to the centre on the circle of mask + 1. */
    private fun magnitudes(out: ByteArray, start: Int, stop: Int, head: Head): Int {
        var sum = 0
        for (i in start until stop) {
            val up = (out[i] - head.centre) and head.mask
            sum += minOf(up, (head.mask + 1 - up))
        }
        return sum
    }

    private fun neighbourhood(activity: Int): Int {
        if (activity < 4) return activity
        val exponent = 31 - Integer.numberOfLeadingZeros(activity)
        return 4 * (exponent - 1) + ((activity ushr (exponent - 2)) and 3)
    }

    private companion object {
        const val SCALE_BITS = 12
        const val SCALE = 1 shl SCALE_BITS
        const val MOST_TABLES = 16
        const val MOST_LANES = 16
        const val CLASSES = 64
        const val NEIGHBOURS = 1
        const val BASE = 2
        const val LOW = 1 shl 16
    }
}
