package dev.edgekit

import java.io.File
import java.nio.file.Files
import java.security.MessageDigest
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder

class BundleTest {
    @get:Rule
    val folder = TemporaryFolder()

    private fun listed(path: String, bytes: Int = 3, content: String = "abc"): String {
        val digest = MessageDigest.getInstance("SHA-256").digest(content.toByteArray()).joinToString("") { "%02x".format(it) }
        return """{"path": "$path", "bytes": $bytes, "sha256": "$digest"}"""
    }

    /** A directory with model.onnx, vectors/v and a manifest that lists [files]. */
    private fun directory(vararg files: String = arrayOf(listed("model.onnx"), listed("vectors/v"))): File {
        val directory = folder.newFolder()
        File(directory, "model.onnx").writeText("abc")
        File(directory, "vectors").mkdir()
        File(directory, "vectors/v").writeText("abc")
        val rest = "\"architecture\": \"\", \"source\": \"\", \"recipe\": {}, \"inputs\": [], \"outputs\": [], \"nodes\": 0"
        val vectors = "\"vectors\": [{\"file\": \"vectors/v\", \"kind\": \"text\"}]"
        File(directory, "manifest.json").writeText(
            "{\"schema_version\": 1, \"task\": \"generic\", \"name\": \"n\", $rest, $vectors, \"files\": [${files.joinToString()}]}",
        )
        return directory
    }

    private fun refused(directory: File, expected: String) {
        val error = assertThrows(BundleException::class.java) { Bundle.open(directory).checkHashes { _, _ -> } }
        assertTrue(error.message, expected in error.message!!)
    }

    @Test
    fun hashesAreCheckedWithProgress() {
        val seen = ArrayList<Pair<Long, Long>>()
        val bundle = Bundle.open(directory())
        bundle.checkHashes { done, total -> seen.add(done to total) }
        assertEquals(listOf(0L to 6L, 3L to 6L, 6L to 6L), seen)
        assertThrows(IllegalStateException::class.java) { bundle.checkHashes { _, _ -> throw IllegalStateException("stop") } }
        refused(directory(listed("model.onnx", content = "abd"), listed("vectors/v")), "model.onnx: sha256 is not the manifest's")
    }

    @Test
    fun whatIsNoBundleIsSaid() {
        refused(File(folder.root, "none"), "no such directory; give a bundle")
        refused(folder.newFolder(), "no manifest.json; this is not an edgekit bundle")
        val binary = directory().also { File(it, "manifest.json").writeBytes(byteArrayOf(-1, -2)) }
        refused(binary, "manifest.json: not UTF-8 text")
    }

    @Test
    fun sizesAndListsMustFit() {
        refused(directory(listed("model.onnx", 4), listed("vectors/v")), "model.onnx: 3 bytes, the manifest says 4")
        refused(directory(listed("model.onnx"), listed("vectors/v"), listed("gone")), "\"gone\" is missing")
        val twice = directory(listed("model.onnx"), listed("vectors/v"), listed("Model.onnx"))
        refused(twice, "is listed twice (upper and lower case are one)")
        refused(directory(listed("model.onnx")), "vector \"vectors/v\" is not among the listed files")
        refused(directory(listed("vectors/v")), "model.onnx is not among the listed files")
    }

    @Test
    fun pathsStayInside() {
        val bad = listOf(
            "", "/etc/passwd", "../x", "a/../x", "a//b", "./a", "a.", "a ", "a:b", "a\\\\b", "a?b", "con", "aux.txt", "d/LPT1.x",
            "a\\u0000b", "a/",
        )
        for (path in bad) {
            val directory = directory(listed("model.onnx"), listed("vectors/v"), listed(path))
            refused(directory, "is not a plain relative path inside the bundle")
        }
    }

    @Test
    fun linksAreRefused() {
        val outside = folder.newFile().also { it.writeText("abc") }
        val symbolic = directory()
        val file = File(symbolic, "vectors/v")
        file.delete()
        Files.createSymbolicLink(file.toPath(), outside.toPath())
        refused(symbolic, "vectors/v: is a link or no file at all")
        file.delete()
        Files.createLink(file.toPath(), outside.toPath())
        refused(symbolic, "vectors/v: has 2 hard links")
        val behind = directory()
        val elsewhere = folder.newFolder().also { File(it, "v").writeText("abc") }
        File(behind, "vectors").deleteRecursively()
        Files.createSymbolicLink(File(behind, "vectors").toPath(), elsewhere.toPath())
        refused(behind, "vectors/v: lies behind a link")
    }

    @Test
    fun theBundleItselfMayBeBehindALink() {
        val link = File(folder.root, "link")
        Files.createSymbolicLink(link.toPath(), directory().toPath())
        assertEquals("n", Bundle.open(link).manifest.name)
    }
}
