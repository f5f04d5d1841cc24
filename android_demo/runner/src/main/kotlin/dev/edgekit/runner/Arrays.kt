package dev.edgekit.runner

import dev.edgekit.DType
import dev.edgekit.Tensor
import dev.edgekit.UsageException
import java.io.File
import java.io.IOException
import java.nio.ByteBuffer
import java.util.Base64

/** Arrays as they travel. */
internal fun packed(arrays: Map<String, Tensor>): Map<String, Any?> = arrays.mapValues { (_, tensor) ->
    val bytes = ByteArray(tensor.data.remaining())
    tensor.data.duplicate().get(bytes)
    mapOf("dtype" to tensor.dtype.numpy, "shape" to tensor.shape.asList(), "data" to Base64.getEncoder().encodeToString(bytes))
}

/** An array that has travelled. Throws [UsageException] when it is none. */
internal fun unpacked(array: Request): Tensor {
    val name = array.text("dtype")
    val dtype = DType.values().firstOrNull { it.numpy == name }
        ?: throw UsageException("dtype $name: known are ${DType.values().map { it.numpy }}")
    val bytes = try {
        Base64.getDecoder().decode(array.text("data"))
    } catch (error: IllegalArgumentException) {
        throw UsageException("data: is not base64 (${error.message})", error)
    }
    val memory = ByteBuffer.allocateDirect(bytes.size).put(bytes)
    memory.flip()
    return Tensor(dtype, array.numbers("shape"), memory)
}

/** MiB of this process: the most it ever had, its own, and of mapped files; null where the system does not say. */
internal fun memory(): Map<String, Double?> {
    val lines = try {
        File("/proc/self/status").readLines()
    } catch (error: IOException) {
        emptyList()
    }
    val fields = lines.associate { it.substringBefore(':') to it.substringAfter(':').trim() }
    fun size(name: String): Double? = fields[name]?.substringBefore(' ')?.toDoubleOrNull()?.let { it / 1024 }
    return mapOf("peak" to size("VmHWM"), "private" to size("RssAnon"), "file" to size("RssFile"))
}
