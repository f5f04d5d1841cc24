package dev.edgekit.tokenizer

import java.util.Base64

/**
 * SentencePiece's normalization: a table from beginnings of characters to texts, as a double array trie over UTF-8 bytes and the texts,
 * each ended by a zero byte.
 */
internal class Precompiled private constructor(private val units: IntArray, private val texts: ByteArray) : Normalizer {
    override fun normalize(piece: Piece): Piece {
        if (piece.text.isEmpty()) return piece
        val begin = if (piece.begin == 0) 0 else maxOf(change(piece.text.substring(0, piece.begin)).length, 1)
        val text = change(piece.text)
        return Piece(text, piece.id, minOf(begin, text.length))
    }

    private fun change(text: String): String {
        val out = StringBuilder(text.length)
        Graphemes.each(text) { start, end ->
            val whole = text.substring(start, end)
            val bytes = whole.toByteArray(Charsets.UTF_8)
            val short = if (bytes.size < LONG) find(bytes) else null
            if (short != null) {
                out.append(short)
            } else {
                forEachCodePoint(whole) { point ->
                    val one = String(Character.toChars(point))
                    out.append(find(one.toByteArray(Charsets.UTF_8)) ?: one)
                }
            }
        }
        return out.toString()
    }

    /** The text for the shortest beginning of [key] that the table has, as the library takes it, or null. */
    private fun find(key: ByteArray): String? {
        var at = offset(unit(0))
        for (byte in key) {
            val label = byte.toInt() and 0xFF
            if (label == 0) return null
            at = at xor label
            val unit = unit(at)
            if (unit and LABEL != label) return null
            at = at xor offset(unit)
            if (unit ushr 8 and 1 == 1) return text(unit(at) and Int.MAX_VALUE)
        }
        return null
    }

    private fun unit(at: Int): Int = if (at in units.indices) units[at] else 0

    private fun offset(unit: Int): Int = unit ushr 10 shl (unit and (1 shl 9) ushr 6)

    private fun text(start: Int): String {
        var end = start
        while (end < texts.size && texts[end] != 0.toByte()) end++
        return if (start in 0..end && end <= texts.size) String(texts, start, end - start, Charsets.UTF_8) else ""
    }

    companion object {
        private const val LABEL = Int.MIN_VALUE or 0xFF
        private const val LONG = 6 // longer characters are only looked up by their code points

        fun read(part: Part): Precompiled {
            val bytes = try {
                Base64.getDecoder().decode(part.text("precompiled_charsmap"))
            } catch (error: IllegalArgumentException) {
                part.broken("\"precompiled_charsmap\" is no base64 (${error.message})")
            }
            val length = if (bytes.size < 4) -1 else little(bytes, 0)
            if (length < 4 || length % 4 != 0 || length > bytes.size - 4) part.broken("\"precompiled_charsmap\" has a table of $length bytes")
            return Precompiled(IntArray(length / 4) { little(bytes, 4 + 4 * it) }, bytes.copyOfRange(4 + length, bytes.size))
        }

        private fun little(bytes: ByteArray, at: Int): Int =
            (0..3).fold(0) { value, index -> value or (bytes[at + index].toInt() and 0xFF shl 8 * index) }
    }
}
