package dev.edgekit.android

import dev.edgekit.BundleException
import dev.edgekit.EdgeKitException
import java.io.ByteArrayInputStream
import java.io.File
import java.io.FileNotFoundException
import java.security.MessageDigest
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder

class BundleAssetsTest {
    @get:Rule
    val folder = TemporaryFolder()

    private val weights = ByteArray(700_000) { (it * 31).toByte() }
    private val app = HashMap<String, ByteArray>()
    private var reads = 0
    private val files: File by lazy { folder.newFolder("files") }
    private val assets by lazy {
        BundleAssets({ listOf("tiny", "another") }, { path -> ByteArrayInputStream(content(path)) }, files)
    }

    private fun content(path: String): ByteArray {
        reads++
        return app[path] ?: throw FileNotFoundException(path)
    }

    private fun ship(vararg contents: Pair<String, ByteArray>) {
        for ((path, bytes) in contents) app["bundles/tiny/$path"] = bytes
        val listed = contents.joinToString(", ") { (path, bytes) -> entry(path, bytes.size.toString(), sha256(bytes)) }
        app["bundles/tiny/manifest.json"] = """{"schema_version": 1, "files": [$listed]}""".toByteArray()
    }

    private fun entry(path: String, bytes: String, sha256: String) =
        """{"path": "$path", "bytes": $bytes, "sha256": "$sha256"}"""

    private fun sha256(bytes: ByteArray) =
        MessageDigest.getInstance("SHA-256").digest(bytes).joinToString("") { "%02x".format(it) }

    private fun shipTiny() = ship("model.onnx" to byteArrayOf(1, 2, 3), "model.onnx.data" to weights, "vectors/000.safetensors" to ByteArray(9))

    private fun failure(): String = assertThrows(BundleException::class.java) { assets.copy("tiny") }.message!!

    private fun nothingIsLeft() = assertEquals(emptyList<String>(), File(files, "bundles").list().orEmpty().toList())

    @Test
    fun `copies every file, with progress up to the end`() {
        shipTiny()
        val seen = ArrayList<Long>()
        val directory = assets.copy("tiny") { done, total ->
            assertEquals(700_012L, total)
            seen.add(done)
        }
        assertEquals(File(files, "bundles/tiny"), directory)
        assertArrayEquals(weights, File(directory, "model.onnx.data").readBytes())
        assertEquals(9, File(directory, "vectors/000.safetensors").length())
        assertTrue(File(directory, "manifest.json").isFile)
        assertEquals(seen.sorted(), seen)
        assertEquals(700_012L, seen.last())
        assertEquals(listOf("tiny"), File(files, "bundles").list().orEmpty().toList())
    }

    @Test
    fun `a second call reads the manifest only`() {
        shipTiny()
        assets.copy("tiny")
        reads = 0
        assets.copy("tiny")
        assertEquals(1, reads)
    }

    @Test
    fun `a newer app replaces the bundle`() {
        shipTiny()
        assets.copy("tiny")
        ship("model.onnx" to byteArrayOf(4))
        val directory = assets.copy("tiny")
        assertEquals(listOf("manifest.json", "model.onnx"), directory.list().orEmpty().sorted())
    }

    @Test
    fun `a file that was cut short on the device is copied again`() {
        shipTiny()
        val data = File(assets.copy("tiny"), "model.onnx.data")
        data.writeBytes(ByteArray(5))
        assets.copy("tiny")
        assertArrayEquals(weights, data.readBytes())
    }

    @Test
    fun `what a broken copy left does not stay`() {
        shipTiny()
        File(files, "bundles/tiny.partial/old").mkdirs()
        assertFalse(File(assets.copy("tiny"), "old").exists())
        assertEquals(listOf("tiny"), File(files, "bundles").list().orEmpty().toList())
    }

    @Test
    fun `an exception of progress ends the copy and leaves nothing`() {
        shipTiny()
        assertThrows(IllegalStateException::class.java) { assets.copy("tiny") { _, _ -> throw IllegalStateException("stop") } }
        nothingIsLeft()
    }

    @Test
    fun `other bytes than the manifest says are refused`() {
        shipTiny()
        app["bundles/tiny/model.onnx"] = byteArrayOf(1, 2, 4)
        assertTrue(failure(), failure().startsWith("bundle \"tiny\": model.onnx is not the file that the manifest lists"))
        nothingIsLeft()
        app["bundles/tiny/model.onnx"] = ByteArray(1000)
        assertTrue(failure(), "of too many bytes" in failure())
        nothingIsLeft()
    }

    @Test
    fun `a missing file is named`() {
        shipTiny()
        app.remove("bundles/tiny/vectors/000.safetensors")
        assertEquals("bundle \"tiny\": the app lacks the file vectors/000.safetensors; build the app again", failure())
        nothingIsLeft()
    }

    @Test
    fun `a path that leads out of the bundle is refused before anything is written`() {
        for (path in listOf("../../evil", "/evil", "a//b", "a/./b", "a\\\\b", "")) {
            app["bundles/tiny/manifest.json"] = """{"files": [${entry(path, "1", "00")}]}""".toByteArray()
            assertTrue(path, "leads out of the bundle" in failure())
        }
        nothingIsLeft()
    }

    @Test
    fun `a manifest that is none is an error, not a crash`() {
        for (text in listOf("", "{", "[]", "{}", """{"files": 3}""", """{"files": [3]}""", """{"files": [${entry("a", "-1", "0")}]}""", """{"files": [${entry("a", "${Long.MAX_VALUE}", "0")}]}""")) {
            app["bundles/tiny/manifest.json"] = text.toByteArray()
            assertTrue(text, failure().startsWith("bundle \"tiny\": manifest.json"))
        }
        nothingIsLeft()
    }

    @Test
    fun `names that are no bundle of the app are refused`() {
        for (name in listOf("", ".", "..", "../tiny", "a\\b", "absent")) {
            assertThrows(name, BundleException::class.java) { assets.copy(name) }
        }
        assertEquals(listOf("another", "tiny"), assets.names())
    }

    @Test
    fun `too little space is said before anything is copied`() {
        app["bundles/tiny/manifest.json"] = """{"files": [${entry("model.onnx", "${1L shl 40}", "00")}]}""".toByteArray()
        val error = assertThrows(EdgeKitException::class.java) { assets.copy("tiny") }.message!!
        assertTrue(error, error.startsWith("bundle \"tiny\" needs 1099512 MB"))
        nothingIsLeft()
    }

}
