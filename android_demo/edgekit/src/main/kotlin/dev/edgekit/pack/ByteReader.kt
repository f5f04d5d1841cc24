package dev.edgekit.pack

/** What is wrong with a chunk; who knows which one makes a BundleException of it. */
internal class Damaged(message: String) : Exception(message)

/** Bytes, numbers and bits of [data] from [at] up to [end], every length checked before it is used. Throws [Damaged]. */
internal class ByteReader(private val data: ByteArray, private var at: Int, val end: Int) {
    private var bits = 0
    private var bitCount = 0

    val left: Int get() = end - at

    /** Where [count] bytes begin, which are then behind. */
    fun take(count: Int): Int {
        if (count > left) throw Damaged("$count bytes expected, $left are left")
        at += count
        return at - count
    }

    fun byte(): Int = data[take(1)].toInt() and 0xff

    /** An unsigned LEB128 number of at most five bytes. */
    fun number(most: Int): Int {
        var value = 0L
        for (shift in 0 until 35 step 7) {
            val byte = byte()
            value = value or ((byte and 127).toLong() shl shift)
            if (byte >= 128) continue
            if (value > most) throw Damaged("$value where at most $most can be")
            return value.toInt()
        }
        throw Damaged("a number has more than five bytes")
    }

    /** The next [count] bits, at most 16, the first is the highest. */
    fun bits(count: Int): Int {
        while (bitCount < count) {
            bits = (bits shl 8) or byte()
            bitCount += 8
        }
        bitCount -= count
        return (bits ushr bitCount) and ((1 shl count) - 1)
    }

    /** Bytes are read again: bits that are left of the last one are not. */
    fun dropBits() {
        bitCount = 0
    }

    /** An exponential Golomb number of order [k]. */
    fun golomb(k: Int, most: Int): Int {
        var length = k
        while (bits(1) == 0) {
            if (++length > 13) throw Damaged("a frequency is too large")
        }
        val value = ((1 shl length) or bits(length)) - (1 shl k)
        if (value > most) throw Damaged("a frequency is too large")
        return value
    }
}
