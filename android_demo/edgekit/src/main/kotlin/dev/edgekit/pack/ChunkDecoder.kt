package dev.edgekit.pack

import java.util.zip.DataFormatException
import java.util.zip.Inflater

/** Chunks of a pack: docs/pack.md, section 4. */
internal class ChunkDecoder {
    private val symbols = SymbolDecoder()

    private class Layout(val width: Int, val planes: Int, val rotated: Boolean)

    /** The [size] bytes of a chunk; [base] are those of another version in the same place, or null. Throws [Damaged]. */
    fun decode(packed: ByteArray, size: Int, base: ByteArray?): ByteArray {
        val source = ByteReader(packed, 0, packed.size)
        val out = ByteArray(size)
        var at = 0
        while (at < size) {
            val method = source.byte()
            val count = source.number(size - at)
            if (count == 0) throw Damaged("a segment of no bytes")
            when (method) {
                STORED -> System.arraycopy(packed, source.take(count), out, at, count)
                FILL -> out.fill(source.byte().toByte(), at, at + count)
                DEFLATE -> inflate(packed, source, out, at, count)
                SYMBOLS -> symbols(packed, source, out, at, count, base)
                else -> throw Damaged("a segment of unknown method $method")
            }
            at += count
        }
        if (source.left != 0) throw Damaged("${source.left} bytes after the last segment")
        return out
    }

    private fun inflate(packed: ByteArray, source: ByteReader, out: ByteArray, at: Int, count: Int) {
        val length = source.number(source.left)
        val start = source.take(length)
        val inflater = Inflater(true)
        try {
            inflater.setInput(packed, start, length)
            var done = 0
            while (done < count && !inflater.finished()) {
                val some = inflater.inflate(out, at + done, count - done)
                if (some == 0 && (inflater.needsInput() || inflater.needsDictionary())) break
                done += some
            }
            // The end mark may stand behind the last byte.
            val more = if (done == count && !inflater.finished()) inflater.inflate(ByteArray(1)) else 0
            if (done != count || more != 0 || !inflater.finished() || inflater.remaining != 0) {
                throw Damaged("deflated data is not as long as it should be")
            }
        } catch (error: DataFormatException) {
            throw Damaged("deflated data is damaged (${error.message})")
        } finally {
            inflater.end()
        }
    }

    private fun symbols(packed: ByteArray, source: ByteReader, out: ByteArray, at: Int, count: Int, base: ByteArray?) {
        val code = source.byte()
        val layout = LAYOUTS.getOrNull(code and 127)
        if (layout == null || count % layout.planes != 0) throw Damaged("a segment of unknown layout ${code and 127} or broken size")
        val difference = code >= 128
        if (difference && base == null) throw Damaged("a segment refers to a base version, and there is none")
        val size = (count.toLong() * 8 / layout.width / layout.planes).toInt()
        for (plane in 0 until layout.planes) {
            val length = source.number(source.left)
            val start = source.take(length)
            val old = if (difference) cut(base!!, at, layout, plane, size) else null
            val found = stream(packed, start, start + length, size, layout.width, old)
            if (old != null) {
                val mask = (1 shl layout.width) - 1
                for (i in found.indices) found[i] = ((found[i] + old[i]) and mask).toByte()
            }
            paste(found, layout, plane, out, at)
        }
        if (layout.rotated) rotate(out, at, count, layout.planes)
    }

    private fun stream(packed: ByteArray, start: Int, end: Int, size: Int, width: Int, old: ByteArray?): ByteArray {
        if (start == end) throw Damaged("a stream of no bytes")
        val mode = packed[start].toInt()
        val body = end - start - 1
        val bytes = ((size.toLong() * width + 7) / 8).toInt()
        return when {
            mode == STORED_STREAM && body == bytes -> split(packed, start + 1, width, size)
            mode == ONE && body == 1 && (packed[start + 1].toInt() and 0xff) ushr width == 0 ->
                ByteArray(size).also { it.fill(packed[start + 1]) }
            mode == CODED -> symbols.decode(packed, start + 1, end, size, width, old)
            else -> throw Damaged("a stream of unknown mode $mode or wrong size")
        }
    }

    /** Bytes from [start] on as [size] symbols, the lowest bits of each first. */
    private fun split(data: ByteArray, start: Int, width: Int, size: Int): ByteArray {
        if (width == 8) return data.copyOfRange(start, start + size)
        val perByte = 8 / width
        val mask = (1 shl width) - 1
        return ByteArray(size) { ((data[start + it / perByte].toInt() ushr (it % perByte * width)) and mask).toByte() }
    }

    /** A plane of the symbols of [data] from [at] on. */
    private fun cut(data: ByteArray, at: Int, layout: Layout, plane: Int, size: Int): ByteArray {
        if (layout.planes == 1) return split(data, at, layout.width, size)
        val planes = layout.planes
        if (!layout.rotated) return ByteArray(size) { data[at + it * planes + plane] }
        // One bit further up: each byte takes the highest bit of the one below, the lowest that of the highest.
        return ByteArray(size) {
            val below = data[at + it * planes + (plane + planes - 1) % planes].toInt() and 0xff
            ((data[at + it * planes + plane].toInt() shl 1) or (below ushr 7)).toByte()
        }
    }

    private fun paste(found: ByteArray, layout: Layout, plane: Int, out: ByteArray, at: Int) {
        if (layout.width == 8) {
            for (i in found.indices) out[at + i * layout.planes + plane] = found[i]
            return
        }
        val perByte = 8 / layout.width
        for (i in found.indices) {
            val place = at + i / perByte
            out[place] = (out[place].toInt() or (found[i].toInt() shl (i % perByte * layout.width))).toByte()
        }
    }

    /** Each element one bit down, its lowest bit to the top. */
    private fun rotate(out: ByteArray, at: Int, count: Int, planes: Int) {
        for (first in at until at + count step planes) {
            val lowest = out[first].toInt() and 1
            for (i in 0 until planes) {
                val above = if (i + 1 < planes) out[first + i + 1].toInt() and 1 else lowest
                out[first + i] = (((out[first + i].toInt() and 0xff) ushr 1) or (above shl 7)).toByte()
            }
        }
    }

    private companion object {
        const val STORED = 0
        const val FILL = 1
        const val DEFLATE = 2
        const val SYMBOLS = 3
        const val STORED_STREAM = 0
        const val ONE = 1
        const val CODED = 2
        val LAYOUTS = listOf(
            Layout(8, 1, false), Layout(4, 1, false), Layout(2, 1, false), Layout(8, 2, true), Layout(8, 4, true), Layout(8, 8, false),
        )
    }
}
