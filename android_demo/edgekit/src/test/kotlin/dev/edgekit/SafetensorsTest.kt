package dev.edgekit

import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder

class SafetensorsTest {
    @get:Rule
    val folder = TemporaryFolder()

    private fun write(header: String, data: ByteArray = ByteArray(0), length: Long? = null): File {
        val text = header.toByteArray()
        val bytes = ByteBuffer.allocate(8 + text.size + data.size).order(ByteOrder.LITTLE_ENDIAN)
        bytes.putLong(length ?: text.size.toLong()).put(text).put(data)
        return folder.newFile().also { it.writeBytes(bytes.array()) }
    }

    private fun entry(dtype: String, shape: String, from: Long, to: Long) =
        """{"dtype": "$dtype", "shape": $shape, "data_offsets": [$from, $to]}"""

    private fun refused(header: String, expected: String, data: ByteArray = ByteArray(16), length: Long? = null) {
        val file = write(header, data, length)
        val error = assertThrows(BundleException::class.java) { Safetensors.read(file) }
        assertTrue(error.message, error.message!!.startsWith("$file: golden vector cannot be read ("))
        assertTrue(error.message, expected in error.message!!)
    }

    @Test
    fun arraysAreReadByName() {
        val data = ByteBuffer.allocate(30).order(ByteOrder.LITTLE_ENDIAN)
        data.putLong(-5).putLong(1L shl 40).putFloat(1.5f).putFloat(-2f).putShort(0x3c00).putShort(0x8001.toShort()).put(0).put(-1)
        val header = """{"__metadata__": {"made": "by hand"}, "ids": ${entry("I64", "[1, 2]", 0, 16)}, "f": ${entry("F32", "[2]", 16, 24)},
            "h": ${entry("F16", "[2, 1]", 24, 28)}, "u": ${entry("U8", "[2]", 28, 30)}, "none": ${entry("F32", "[0, 7]", 30, 30)}}"""
        val found = Safetensors.read(write(header, data.array()))
        assertEquals(listOf("ids", "f", "h", "u", "none"), found.keys.toList())
        assertArrayEquals(longArrayOf(-5, 1L shl 40), found.getValue("ids").longs())
        assertArrayEquals(longArrayOf(1, 2), found.getValue("ids").shape)
        assertArrayEquals(floatArrayOf(1.5f, -2f), found.getValue("f").floats(), 0f)
        assertArrayEquals(floatArrayOf(1f, -5.9604645e-8f), found.getValue("h").floats(), 0f)
        assertArrayEquals(longArrayOf(0, 255), found.getValue("u").longs())
        assertEquals(0, found.getValue("none").count)
    }

    @Test
    fun whatIsNoSafetensorsFileIsRefused() {
        refused("{\"a", "its header is not JSON")
        refused("[]", "its header is no object")
        refused("{}", "a header of 99 bytes in a file of", length = 99)
        refused("{}", "a header of -1 bytes in a file of", length = -1)
        refused("""{"a": 1}""", "array \"a\" is no object")
        refused("""{"a": {"dtype": "F32"}}""", "array \"a\" has the keys [dtype]")
        val short = folder.newFile().also { it.writeBytes(ByteArray(7)) }
        assertThrows(BundleException::class.java) { Safetensors.read(short) }
        assertThrows(BundleException::class.java) { Safetensors.read(File(folder.root, "none")) }
    }

    @Test
    fun placesAreCheckedBeforeAnythingIsRead() {
        refused("""{"a": ${entry("F64", "[1]", 0, 8)}}""", "has the dtype F64; known are [F32, ")
        refused("""{"a": ${entry("F32", "[-1]", 0, 4)}}""", "has no shape of whole numbers")
        refused("""{"a": ${entry("F32", "[1.5]", 0, 4)}}""", "has no shape of whole numbers")
        refused("""{"a": ${entry("F32", "[5]", 0, 20)}}""", "lies at bytes 0 to 20 of 16")
        refused("""{"a": ${entry("F32", "[1]", 8, 4)}}""", "lies at bytes 8 to 4 of 16")
        refused("""{"a": ${entry("F32", "[2]", 0, 4)}}""", "has 4 bytes, its shape needs 8")
        refused("""{"a": ${entry("F32", "[4611686018427387904, 4611686018427387904]", 0, 4)}}""", "impossible size")
        refused("""{"a": ${entry("F32", "[2]", 0, 8)}, "b": ${entry("F32", "[2]", 4, 12)}}""", "the arrays \"a\" and \"b\" overlap")
    }
}
