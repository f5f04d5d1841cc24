package dev.edgekit.pack

import dev.edgekit.EdgeKit
import dev.edgekit.EdgeKitException
import java.io.File
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder

/** Packs that edgekit's Python wrote (tests/android/test_pack.py): each comes back byte for byte, or is refused as it is there. */
class UnpackTest {
    @get:Rule
    val folder = TemporaryFolder()

    private val packs = File(System.getProperty("edgekit.packs")!!)

    private fun files(directory: File): Map<String, ByteArray> =
        directory.walk().filter { it.isFile }.associate { it.relativeTo(directory).path to it.readBytes() }

    private fun same(expected: File, found: File) {
        val (a, b) = listOf(files(expected), files(found))
        assertEquals(a.keys, b.keys)
        for ((name, data) in a) assertArrayEquals(name, data, b[name])
    }

    @Test
    fun goodPacksComeBack() {
        val good = File(packs, "good").listFiles { file -> file.name.endsWith(".edgepack") }!!.sorted()
        assertTrue(good.size > 5)
        for (pack in good) {
            val expected = File(pack.path.removeSuffix(".edgepack"))
            val base = File("${expected.path}.base").takeIf { it.exists() }?.let { File(pack.parentFile, it.readText()) }
            val target = File(folder.root, expected.name)
            val seen = ArrayList<Long>()
            EdgeKit.unpack(pack, target, base) { done, total ->
                seen.add(done)
                assertTrue(done <= total)
            }
            same(expected, target)
            assertEquals(seen.sorted(), seen)
            assertEquals(files(expected).values.sumOf { it.size.toLong() }, seen.last())
        }
    }

    @Test
    fun badPacksAreRefused() {
        val bad = File(packs, "bad").listFiles { file -> file.name.endsWith(".edgepack") }!!.sorted()
        assertTrue(bad.size > 100)
        for (pack in bad) {
            val error = assertThrows(pack.name, EdgeKitException::class.java) { EdgeKit.unpack(pack, File(folder.root, "x")) }
            val expected = File("${pack.path}.txt").takeIf { it.exists() }?.readText().orEmpty()
            assertTrue("${pack.name}: ${error.message}", Regex(expected).containsMatchIn(error.message!!))
            assertEquals(emptyList<String>(), folder.root.list()!!.toList())
        }
    }

    @Test
    fun whatIsThereStays() {
        val pack = File(packs, "good/int4.edgepack")
        val target = folder.newFolder("x").also { File(it, "mine").writeText("precious") }
        val error = assertThrows(EdgeKitException::class.java) { EdgeKit.unpack(pack, target) }
        assertTrue(error.message, "is there already; remove it or give another directory" in error.message!!)
        File(target, "mine").delete()
        EdgeKit.unpack(pack, target)
        same(File(packs, "good/int4"), target)
    }

    @Test
    fun anExceptionOfTheListenerEndsTheWork() {
        val pack = File(packs, "good/int4.edgepack")
        assertThrows(IllegalStateException::class.java) {
            EdgeKit.unpack(pack, File(folder.root, "x")) { done, _ -> if (done > 0) throw IllegalStateException("stop") }
        }
        assertEquals(emptyList<String>(), folder.root.list()!!.toList())
    }

    @Test
    fun deltasNeedTheirBase() {
        val delta = File(packs, "good/delta.edgepack")
        for ((base, expected) in listOf(null to "give that bundle as base", File(packs, "good/int4") to "int4 has [0-9a-f]{16}")) {
            val error = assertThrows(EdgeKitException::class.java) { EdgeKit.unpack(delta, File(folder.root, "x"), base) }
            assertTrue(error.message, Regex(expected).containsMatchIn(error.message!!))
        }
    }

    @Test
    fun signaturesAreChecked() {
        val keys = File(packs, "keys")
        val (mine, yours) = listOf("me", "you").map { File(keys, it).readBytes() }
        val signed = File(packs, "good/signed.edgepack")
        EdgeKit.unpack(signed, File(folder.root, "a"), verifyKey = mine)
        for ((pack, key, expected) in listOf(
            Triple(signed, yours, "its signature is not by the key's owner"),
            Triple(File(packs, "good/int4.edgepack"), mine, "is not signed, and a key was to prove who made it"),
            Triple(signed, byteArrayOf(1, 2), "the key is no X.509 form"),
        )) {
            val error = assertThrows(EdgeKitException::class.java) { EdgeKit.unpack(pack, File(folder.root, "b"), verifyKey = key) }
            assertTrue(error.message, expected in error.message!!)
        }
    }
}
