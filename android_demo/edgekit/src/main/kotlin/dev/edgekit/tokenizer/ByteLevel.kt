package dev.edgekit.tokenizer

/** GPT-2's way to write any byte as a visible character. */
internal object ByteLevel {
    private val chars = CharArray(256)
    private val bytes = IntArray(0x180) { -1 }

    init {
        var other = 0x100
        for (byte in 0..255) {
            val visible = byte in 0x21..0x7E || byte in 0xA1..0xAC || byte in 0xAE..0xFF
            chars[byte] = if (visible) byte.toChar() else (other++).toChar()
            bytes[chars[byte].code] = byte
        }
    }

    /** The words that GPT-2 looks for. */
    val words: Pattern by lazy {
        Pattern.regex("'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+")
    }

    fun encode(text: String): String {
        val out = StringBuilder(text.length * 2)
        forEachCodePoint(text) { Utf8.each(it) { byte -> out.append(chars[byte]) } }
        return out.toString()
    }

    /** The bytes of a token, or null when it holds a character that stands for none. */
    fun decode(token: String): ByteArray? {
        val out = ByteArray(token.length)
        for (index in token.indices) {
            val code = token[index].code
            val byte = if (code < bytes.size) bytes[code] else -1
            if (byte < 0) return null
            out[index] = byte.toByte()
        }
        return out
    }
}

internal object Utf8 {
    inline fun each(point: Int, action: (Int) -> Unit) {
        when {
            point < 0x80 -> action(point)
            point < 0x800 -> {
                action(0xC0 or (point shr 6))
                action(0x80 or (point and 0x3F))
            }
            point < 0x10000 -> {
                action(0xE0 or (point shr 12))
                action(0x80 or (point shr 6 and 0x3F))
                action(0x80 or (point and 0x3F))
            }
            else -> {
                action(0xF0 or (point shr 18))
                action(0x80 or (point shr 12 and 0x3F))
                action(0x80 or (point shr 6 and 0x3F))
                action(0x80 or (point and 0x3F))
            }
        }
    }

    /** The text of [bytes], or null where they are no UTF-8. */
    fun strict(bytes: ByteArray): String? = read(bytes) { return null }

    /** The text of [bytes]; each longest beginning of a character that breaks off becomes U+FFFD. */
    fun lossy(bytes: ByteArray): String = read(bytes) { it.append('\uFFFD') }

    private inline fun read(bytes: ByteArray, broken: (StringBuilder) -> Unit): String {
        val out = StringBuilder(bytes.size)
        var at = 0
        while (at < bytes.size) {
            val length = validLength(bytes, at)
            if (length < 0) broken(out) else out.appendCodePoint(point(bytes, at, length))
            at += if (length < 0) -length else length
        }
        return out.toString()
    }

    private fun point(bytes: ByteArray, at: Int, length: Int): Int {
        val first = bytes[at].toInt() and 0xFF
        var point = if (length == 1) first else first and (0x7F shr length)
        for (index in at + 1 until at + length) point = point shl 6 or (bytes[index].toInt() and 0x3F)
        return point
    }

    /** Bytes of the character at [at], or minus the bytes of its beginning when it is none. */
    private fun validLength(bytes: ByteArray, at: Int): Int {
        val first = bytes[at].toInt() and 0xFF
        val length = when (first) {
            in 0..0x7F -> return 1
            in 0xC2..0xDF -> 2
            in 0xE0..0xEF -> 3
            in 0xF0..0xF4 -> 4
            else -> return -1
        }
        for (index in 1 until length) {
            val next = if (at + index < bytes.size) bytes[at + index].toInt() and 0xFF else -1
            val least = if (index > 1) 0x80 else if (first == 0xE0) 0xA0 else if (first == 0xF0) 0x90 else 0x80
            val most = if (index > 1) 0xBF else if (first == 0xED) 0x9F else if (first == 0xF4) 0x8F else 0xBF
            if (next < least || next > most) return -index
        }
        return length
    }
}
