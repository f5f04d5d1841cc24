package dev.edgekit.tokenizer

private val POWERS = DoubleArray(309) { "1e$it".toDouble() }
private val NUMBER = Regex("(-?)(\\d+)(?:\\.(\\d+))?(?:[eE]([+-]?\\d+))?")

/**
 * A JSON number as serde_json reads it, which is what the tokenizers library is built with: quickly, and in one of eight long numbers not
 * to the nearest double. Scores that differ in their last bit decide between ways to cut a word that are otherwise equally good.
 */
internal fun rustDouble(written: String): Double {
    val (sign, whole, fraction, power) = requireNotNull(NUMBER.matchEntire(written)) { written }.destructured
    var significand = 0uL
    var exponent = 0L
    var full = false // no further digit fits
    for (digit in whole) {
        full = full || !fits(significand, digit)
        if (full) exponent++ else significand = significand * 10u + (digit - '0').toULong()
    }
    for (digit in fraction) {
        if (!fits(significand, digit)) break
        significand = significand * 10u + (digit - '0').toULong()
        exponent--
    }
    exponent += power.toLongOrNull()?.coerceIn(-100_000L, 100_000L) ?: 0
    val value = scaled(significand.toDouble(), exponent.toInt())
    return if (sign == "-") -value else value
}

private fun fits(significand: ULong, digit: Char): Boolean = significand <= (ULong.MAX_VALUE - (digit - '0').toULong()) / 10u

private fun scaled(significand: Double, exponent: Int): Double {
    var value = significand
    var left = exponent
    while (left < -308 && value != 0.0) {
        value /= POWERS[308]
        left += 308
    }
    if (value == 0.0) return value
    return if (left > 308) Double.POSITIVE_INFINITY else if (left >= 0) value * POWERS[left] else value / POWERS[-left]
}
