package dev.edgekit

import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertNull
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test

class ManifestTest {
    private val decoder = """{"layers": 2, "kv_heads": [1, 1], "head_dim": [16, 16], "vocab_size": 259, "max_length": 64,
        "proof_error": 0, "bos_token_id": null, "eos_token_ids": [257]}"""
    private val layer = """{"name": "l", "format": "int8", "block_size": 128, "bits_per_weight": 8, "shape": [4, 4]}"""
    private val dead = """{"layer": "l", "unit": "hidden unit", "count": 3, "of": 96, "removed": true, "reason": "always zero"}"""
    private val least = linkedMapOf(
        "schema_version" to "1", "task" to "\"text-generation\"", "name" to "\"tiny\"", "architecture" to "\"\"", "source" to "\"here\"",
        "recipe" to """{"parity": {"max_abs": 0.001, "top1": null, "margin": 0.5}}""",
        "inputs" to """[{"name": "x", "dtype": "int64", "dims": ["batch", 4]}]""", "outputs" to "[]", "nodes" to "3",
    )

    private fun text(vararg changed: Pair<String, String>): String =
        (least + changed).entries.joinToString(", ", "{", "}") { "\"${it.key}\": ${it.value}" }

    private fun parse(vararg changed: Pair<String, String>) = Manifest.parse(text(*changed), "m.json")

    private fun refused(expected: String, text: String) {
        val error = assertThrows(BundleException::class.java) { Manifest.parse(text, "m.json") }
        assertTrue(error.message, error.message!!.startsWith(expected))
    }

    @Test
    fun theLeastManifestIsEnough() {
        val manifest = parse()
        assertEquals("tiny", manifest.name)
        assertEquals(listOf("batch", 4L), manifest.inputs.single().dims)
        assertEquals(0.001, manifest.parity.maxAbs!!, 0.0)
        assertNull(manifest.parity.top1)
        assertEquals(0.5, manifest.parity.margin, 0.0)
        assertNull(manifest.decoder)
        assertFalse(manifest.usesOperators)
    }

    @Test
    fun keysOfANewerMinorVersionAreIgnored() {
        val manifest = parse("schema_minor" to "1", "future" to "7", "layers" to "[${layer.replace("}", ", \"more\": 1}")}]")
        assertEquals("l", manifest.layers.single().name)
        refused("m.json: manifest: unknown key \"future\"", text("schema_minor" to "0", "future" to "7"))
        refused("m.json: schema_minor: -1 is not a whole number from 0", text("schema_minor" to "-1"))
    }

    @Test
    fun aDecoderThatReadsPicturesIsRefused() {
        val error = assertThrows(UnsupportedException::class.java) { Manifest.parse("""{"schema_version": 4, "pictures": {}}""", "m.json") }
        assertEquals("m.json: reads pictures or sound; such models run in Python and on Linux devices, not here", error.message)
    }

    @Test
    fun aDecoderBehindAnEncoderIsRead() {
        val encoder = """{"heads": [1, 1], "head_dim": [16, 16], "max_length": 0, "start_tokens": [0], "suppressed_tokens": []}"""
        fun both(encoder: String) = text("schema_version" to "3", "decoder" to decoder.removeSuffix("}") + ", \"encoder\": $encoder}")
        val info = Manifest.parse(both(encoder), "m.json").decoder!!.encoder!!
        assertEquals(listOf(0L), info.startTokens)
        val place = "m.json: manifest.decoder.encoder"
        refused("$place: 1 heads, but 2 head_dim", both(encoder.replaceFirst("[1, 1]", "[1]")))
        refused("$place: no start_tokens, or tokens that are not between 0 and ", both(encoder.replace("[0]", "[]")))
        refused("$place: no start_tokens, or tokens that are not between 0 and ", both(encoder.replace("\"suppressed_tokens\": []", "\"suppressed_tokens\": [-1]")))
        refused("$place.max_length: -1 is not between 0 and ", both(encoder.replace("\"max_length\": 0", "\"max_length\": -1")))
    }

    @Test
    fun allOfAManifestIsRead() {
        val manifest = parse(
            "decoder" to decoder, "layers" to "[$layer]", "dead_units" to "[$dead]", "taps" to """{"a": "b"}""", "evaluation" to """{"ppl": 3}""",
            "vectors" to """[{"file": "v", "kind": "text"}]""", "files" to """[{"path": "v", "bytes": 1, "sha256": "0"}]""",
        )
        val info = manifest.decoder!!
        assertEquals(listOf(1, 1), info.kvHeads)
        assertEquals(listOf(257L), info.eosTokenIds)
        assertEquals(-1, manifest.layers.single().activationBlockSize)
        assertEquals(3, manifest.deadUnits.single().count)
        assertTrue(manifest.deadUnits.single().removed)
        assertEquals("b", manifest.taps["a"])
        assertEquals(3.0, manifest.evaluation["ppl"]!!, 0.0)
        assertEquals(1, manifest.files.single().bytes)
        assertEquals("text", manifest.vectors.single().kind)
    }

    @Test
    fun statesAreReadAndUnknownOnesRefused() {
        fun of(state: String, version: Int = 2): String {
            val changed = decoder.replace("[1, 1]", "[1, 0]").replace("[16, 16]", "[16, 0]").replace("}", ", \"states\": [$state]}")
            return text("schema_version" to "$version", "decoder" to changed)
        }
        fun state(kind: String = "replaced", dtype: String = "float", dims: String = "[4, 2]"): String =
            """{"input": "past_conv.1", "output": "present_conv.1", "dtype": "$dtype", "dims": $dims, "kind": "$kind"}"""
        val place = "m.json: manifest.decoder.states: \"past_conv.1\""
        val info = Manifest.parse(of(state()), "m.json").decoder!!
        assertEquals(listOf(1, 0), info.kvHeads)
        assertEquals(listOf(4L, 2L), info.states.single().dims)
        refused("$place is \"appended\" and \"float\", this edgekit knows replaced and float: update the app", of(state(kind = "appended")))
        refused("$place is \"replaced\" and \"float16\"", of(state(dtype = "float16")))
        refused("$place has dims [], from 1 and 134217728 numbers at most", of(state(dims = "[]")))
        refused("$place has dims [4, 0]", of(state(dims = "[4, 0]")))
        refused("$place has dims [134217728, 2]", of(state(dims = "[134217728, 2]")))
        refused("m.json: manifest.decoder: a layer without keys and values in a manifest of version 1", of(state(), version = 1))
        val halved = of(state()).replace("[16, 0]", "[16, 16]")
        refused("m.json: manifest.decoder: kv_heads [1, 0] and head_dim [16, 16], 0 in one of them", halved)
    }

    @Test
    fun onlyLayersOfTheOperatorsNeedThem() {
        fun of(format: String, more: String): Manifest = parse("layers" to "[${layer.replace("int8", format).replace("}", "$more}")}]")
        fun uses(format: String, more: String = ""): Boolean = of(format, more).usesOperators
        fun needs(format: String, more: String = ""): Boolean = of(format, more).needsOperators
        assertTrue(uses("t2"))
        assertTrue(uses("int8-channel", ", \"activation_block_size\": 0"))
        assertFalse(uses("int8-channel"))
        assertTrue(uses("int8", ", \"activation_block_size\": 64"))
        assertFalse(uses("int8"))
        assertTrue(uses("int4", ", \"activation_block_size\": 64"))
        assertFalse(uses("int4"))
        assertTrue(needs("t2"))
        assertTrue(needs("int8-channel", ", \"activation_block_size\": 0"))
        assertFalse(needs("int4", ", \"activation_block_size\": 64"))
    }

    @Test
    fun versionsComeFirst() {
        refused("m.json: no schema_version; this is not an edgekit bundle", "[]")
        refused("m.json: no schema_version", text("schema_version" to "true"))
        refused("m.json: no schema_version", text("schema_version" to "1.0"))
        refused("m.json: schema_version 5, this edgekit reads up to 4", """{"schema_version": 5, "unheard": "of"}""")
    }

    @Test
    fun whatIsNotAsTheFormatHasItIsRefused() {
        refused("m.json: not valid JSON (", "{")
        refused("m.json: not valid JSON (the key \"nodes\" stands twice", text().replace("}", "}").dropLast(1) + ", \"nodes\": 4}")
        refused("m.json: not valid JSON (", text("nodes" to "NaN"))
        val sure = "[${dead.replace("true", "1")}]"
        refused("m.json: manifest.dead_units[0].removed: expected true or false, found 1", text("dead_units" to sure))
        refused("m.json: not valid JSON (", text("nodes" to "1e999"))
        refused("m.json: manifest: unknown key \"license\"; known are schema_version, schema_minor, task", text("license" to "1"))
        refused("m.json: manifest: missing key \"nodes\"", text().replace("\"nodes\": 3", "\"taps\": {}"))
        refused("m.json: manifest.nodes: expected a whole number, found 3.5", text("nodes" to "3.5"))
        refused("m.json: manifest.name: expected text, found null", text("name" to "null"))
        refused("m.json: manifest.outputs: expected a list, found an object", text("outputs" to "{}"))
        refused("m.json: manifest.outputs[0]: expected an object, found \"y\"", text("outputs" to "[\"y\"]"))
        val dims = text("inputs" to """[{"name": "x", "dtype": "f", "dims": [1.5]}]""")
        refused("m.json: manifest.inputs[0].dims[0]: expected a number or a name, found 1.5", dims)
        refused("m.json: manifest.taps.a: expected text, found 1", text("taps" to """{"a": 1}"""))
        refused("m.json: manifest.task: \"poetry\" is not one of text-generation", text("task" to "\"poetry\""))
        refused("m.json: manifest.recipe.parity: unknown key \"beauty\"", text("recipe" to """{"parity": {"beauty": 1}}"""))
    }

    @Test
    fun buffersAreAllocatedByTheDecodersNumbers() {
        fun wrong(from: String, to: String, expected: String) =
            refused("m.json: manifest.decoder$expected", text("decoder" to decoder.replace(from, to)))
        wrong("\"layers\": 2", "\"layers\": 3", ": 3 layers, but 2 kv_heads and 2 head_dim")
        wrong("[1, 1]", "[1, 0]", ": a layer without keys and values in a manifest of version 1")
        wrong("[1, 1]", "[1, 4097]", ".kv_heads: 4097 is not between 0 and 4096")
        wrong("[16, 16]", "[16, 65537]", ".head_dim: 65537 is not between 0 and 65536")
        wrong("259", "1000000000000", ".vocab_size: 1000000000000 is not between 1 and 134217728")
        wrong("64", "-64", ".max_length: -64 is not between 1 and 134217728")
        wrong("[257]", "257", ".eos_token_ids: expected a list, found 257")
    }
}
