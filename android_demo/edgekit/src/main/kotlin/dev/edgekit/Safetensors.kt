package dev.edgekit

import java.io.File
import java.io.IOException
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.channels.FileChannel
import java.nio.charset.CharacterCodingException
import java.nio.file.StandardOpenOption

/**
 * Files of named arrays: 8 bytes with the header's length, a header in JSON, the data. Nobody vouches for them: every number is checked
 * before it is used.
 */
public object Safetensors {
    private const val LARGEST_HEADER = 100L shl 20
    private val DTYPES = mapOf(
        "F32" to DType.FLOAT32, "F16" to DType.FLOAT16, "I64" to DType.INT64, "I32" to DType.INT32, "I8" to DType.INT8,
        "U8" to DType.UINT8, "BOOL" to DType.BOOL,
    )

    /** All arrays of [file] by name, in memory. Throws [BundleException] that says what is wrong with the file. */
    public fun read(file: File): Map<String, Tensor> = try {
        FileChannel.open(file.toPath(), StandardOpenOption.READ).use { read(it, file) }
    } catch (error: IOException) {
        throw BundleException("$file: cannot be read (${error.message}); export or download the bundle again", error)
    }

    private fun read(channel: FileChannel, file: File): Map<String, Tensor> {
        val size = channel.size()
        if (size < 8) broken(file, "$size bytes are no safetensors file")
        val length = bytes(channel, 0, 8, file).getLong(0)
        if (length < 2 || length > minOf(size - 8, LARGEST_HEADER)) broken(file, "a header of $length bytes in a file of $size")
        val header = header(bytes(channel, 8, length.toInt(), file), file)
        val places = header.filterKeys { it != "__metadata__" }.map { (name, entry) -> Place(file, name, entry, size - 8 - length) }
        checkApart(places, file)
        return places.associate { it.name to Tensor(it.dtype, it.shape, bytes(channel, 8 + length + it.start, it.bytes, file)) }
    }

    private fun header(bytes: ByteBuffer, file: File): Map<String, Any?> {
        val value = try {
            Json.parse(Charsets.UTF_8.newDecoder().decode(bytes).toString())
        } catch (error: CharacterCodingException) {
            broken(file, "its header is not UTF-8")
        } catch (error: JsonException) {
            broken(file, "its header is not JSON: ${error.message}")
        }
        @Suppress("UNCHECKED_CAST") // keys of JSON objects are texts
        return value as? Map<String, Any?> ?: broken(file, "its header is no object")
    }

    /** One entry of the header, checked; [start] counts from the end of the header. */
    private class Place(file: File, val name: String, entry: Any?, available: Long) {
        val dtype: DType
        val shape: LongArray
        val start: Long
        val bytes: Int

        init {
            val where = "array \"${name.take(60)}\""
            val fields = entry as? Map<*, *> ?: broken(file, "$where is no object")
            if (fields.keys != setOf("dtype", "shape", "data_offsets")) broken(file, "$where has the keys ${fields.keys}")
            dtype = DTYPES[fields["dtype"]] ?: broken(file, "$where has the dtype ${fields["dtype"]}; known are ${DTYPES.keys}")
            shape = numbers(fields["shape"]) ?: broken(file, "$where has no shape of whole numbers")
            val offsets = numbers(fields["data_offsets"])
            if (offsets?.size != 2) broken(file, "$where has no two data_offsets")
            val (from, to) = offsets
            if (from > to || to > available) broken(file, "$where lies at bytes $from to $to of $available")
            val expected = try {
                Tensor.byteCount(dtype, shape)
            } catch (error: UsageException) {
                broken(file, "$where: ${error.message}")
            }
            if (to - from != expected || expected > Int.MAX_VALUE) broken(file, "$where has ${to - from} bytes, its shape needs $expected")
            start = from
            bytes = expected.toInt()
        }

        private fun numbers(value: Any?): LongArray? {
            val list = value as? List<*> ?: return null
            return if (list.all { it is Long && it >= 0 }) LongArray(list.size) { list[it] as Long } else null
        }
    }

    private fun checkApart(places: List<Place>, file: File) {
        val filled = places.filter { it.bytes > 0 }.sortedBy { it.start }
        for ((one, next) in filled.zipWithNext()) {
            if (one.start + one.bytes > next.start) broken(file, "the arrays \"${one.name}\" and \"${next.name}\" overlap")
        }
    }

    private fun bytes(channel: FileChannel, from: Long, count: Int, file: File): ByteBuffer {
        val buffer = ByteBuffer.allocateDirect(count).order(ByteOrder.LITTLE_ENDIAN)
        while (buffer.hasRemaining()) {
            if (channel.read(buffer, from + buffer.position()) < 0) broken(file, "it ends within its data")
        }
        buffer.flip()
        return buffer
    }

    private fun broken(file: File, what: String): Nothing =
        throw BundleException("$file: golden vector cannot be read ($what); export or download the bundle again")
}
