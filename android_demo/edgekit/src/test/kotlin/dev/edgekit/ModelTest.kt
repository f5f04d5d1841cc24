package dev.edgekit

import java.io.File
import kotlin.concurrent.thread
import kotlin.math.abs
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.delay
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertNull
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Assume.assumeTrue
import org.junit.Before
import org.junit.Test

/** Of [ModelTest.used]: by then a run of the slow model is under way. */
private const val STARTED = 80

/**
 * Bundles on ONNX Runtime, compared with what edgekit's own runtime makes of them. tests/android/test_engine.py writes the bundles and
 * the answers into the directory that the property edgekit.bundles names; without it nothing is tested here.
 */
class ModelTest {
    private val bundles = File(System.getProperty("edgekit.bundles") ?: "none")
    private val answers by lazy { Json.parse(File(bundles, "answers.json").readText()) as Map<*, *> }
    private val library get() = File(System.getProperty("edgekit.library"))
    private val slowPrompt = "a prompt that takes many seconds"

    @Before
    fun bundlesAreThere() = assumeTrue("no property edgekit.bundles", bundles.isDirectory)

    private fun open(name: String, library: File? = null) = EdgeKit.open(File(bundles, name), library = library)

    private fun text(model: Model, prompt: String, options: GenerateOptions = GenerateOptions()): String =
        runBlocking { model.generate(prompt, options).toList().joinToString("") }

    private fun said(expected: String, call: () -> Unit) {
        val error = assertThrows(EdgeKitException::class.java) { call() }
        assertTrue("${error.javaClass.simpleName}: ${error.message}", expected in "${error.javaClass.simpleName}: ${error.message}")
    }

    /** Hundredths of a second of the processor that this process has used so far: the same on a busy machine. */
    private fun used(): Int = File("/proc/self/stat").readText().substringAfterLast(") ").split(" ").let { it[11].toInt() + it[12].toInt() }

    private fun used(work: () -> Unit): Int = used().let { before ->
        work()
        used() - before
    }

    @Test
    fun aBundleIsOpenedAndRun() {
        val seen = ArrayList<Long>()
        EdgeKit.open(File(bundles, "linear"), threads = 2) { done, _ -> seen.add(done) }.use { model ->
            assertEquals("tiny", model.manifest.name)
            assertEquals("", model.operators)
            assertNull(model.tokenizer)
            assertEquals(model.manifest.files.sumOf { it.bytes }, seen.last())
            val golden = Safetensors.read(File(bundles, "linear/vectors/sample-0.safetensors"))
            val found = model.run(mapOf("x" to golden.getValue("input.x")))
            assertArrayEquals(golden.getValue("compressed.y").floats(), found.getValue("y").floats(), 1e-3f)
            said("UsageException: inputs: [z] given, the graph has [x]") { model.run(mapOf("z" to golden.getValue("input.x"))) }
            said("BundleException: ${File(bundles, "linear/model.onnx")}: ONNX Runtime stopped: ") { model.run(emptyMap()) }
        }
    }

    @Test
    fun theOperatorsRunWhereTheyAreNeeded() {
        open("ternary", library).use { model ->
            assertTrue(model.operators, model.operators.startsWith("0.1.0 ") && ';' !in model.operators)
            assertTrue(model.parity(0).passed)
        }
        said("RuntimeUnavailableException: ${File(bundles, "ternary")}: its layers run on edgekit's operator library") { open("ternary") }
        open("linear", library).use { assertEquals("", it.operators) }
    }

    @Test
    fun parityIsWhatEdgekitMeasures() {
        for ((name, expected) in answers["parity"] as Map<*, *>) {
            val fields = expected as Map<*, *>
            open(name as String, library).use { model ->
                val result = model.parity(0)
                assertEquals(name, fields["passed"], result.passed)
                for ((metric, value) in fields["metrics"] as Map<*, *>) {
                    val wanted = (value as Number).toDouble()
                    val found = result.metrics.getValue(metric as String)
                    // Decibels of rounding errors are no property of the model.
                    val near = if (metric == "sqnr_db") minOf(wanted, 90.0) - minOf(found, 90.0) else wanted - found
                    assertTrue("$name $metric: $found, $wanted expected", abs(near) <= 1e-4 * maxOf(1.0, abs(wanted)))
                }
                said("UsageException: vector 9: ${File(bundles, name)} has ") { model.parity(9) }
            }
        }
    }

    @Test
    fun timesAreMeasuredByPhase() {
        open("decoder").use { model ->
            val rows = model.benchmark(promptTokens = 20, newTokens = 4, rounds = 2)
            assertEquals(listOf("prefill", "decode"), rows.map { it.phase })
            assertEquals(8, rows[1].samples)
            for (row in rows) assertTrue(row.p50Ms > 0 && row.p50Ms <= row.p90Ms && row.p90Ms <= row.p99Ms && row.tokensPerSecond!! > 0)
            said("UsageException: benchmark: 60 + 5 tokens, the model's context holds 64") { model.benchmark(60, 5) }
            said("UsageException: benchmark: promptTokens 0") { model.benchmark(0) }
        }
        open("linear").use { model -> assertNull(model.benchmark(rounds = 1).single().tokensPerSecond) }
    }

    @Test
    fun percentilesLieBetweenSamples() {
        val sorted = doubleArrayOf(1.0, 2.0, 4.0)
        assertEquals(listOf(1.0, 2.0, 3.6, 4.0), listOf(0.0, 0.5, 0.9, 1.0).map { percentile(sorted, it) })
    }

    @Test
    fun textIsWhatEdgekitGenerates() {
        for ((name, cases) in answers["texts"] as Map<*, *>) {
            open(name as String, library).use { model ->
                for (case in cases as List<*>) {
                    val fields = case as Map<*, *>
                    val options = GenerateOptions(
                        maxNewTokens = (fields["max_new_tokens"] as Long).toInt(), chat = fields["chat"] as Boolean?,
                        system = fields["system"] as String?, stop = (fields["stop"] as List<*>).map { it as String },
                        begin = fields["begin"] as String,
                    )
                    repeat(2) { assertEquals(fields["text"], text(model, fields["prompt"] as String, options)) } // the second begins anew
                }
            }
        }
    }

    @Test
    fun aTranslatorHasTwoGraphs() {
        open("bart-int8/bundle", library).use { model ->
            val rows = model.benchmark(promptTokens = 20, newTokens = 4, rounds = 1)
            assertEquals(listOf("prefill", "decode"), rows.map { it.phase })
            said("UsageException: chat, system: the model turns one text into another") { text(model, "a", GenerateOptions(system = "b")) }
            said("UsageException: a source of 151 tokens; the encoder reads 128 at most") { text(model, "a".repeat(150)) }
        }
        open("decoder").use { model ->
            said("UsageException: begin: the model continues the prompt") { text(model, "a", GenerateOptions(begin = "b")) }
        }
    }

    @Test
    fun anEncoderMustBelongToItsDecoder() {
        fun changed(name: String, change: (File) -> Unit) = File(bundles, name).also {
            File(bundles, "bart/bundle").copyRecursively(it)
            change(it)
        }
        val gone = changed("without-encoder") { File(it, "encoder/manifest.json").delete() }
        said("BundleException: $gone/manifest.json: \"encoder/manifest.json\" is missing") { EdgeKit.open(gone, library = library) }
        val other = changed("other-encoder") { place ->
            val file = File(place, "encoder/manifest.json")
            val text = file.readText()
            val whole = Regex("(\"cross.0.key\",\\s*\"dtype\": \"float\",\\s*\"dims\": \\[\\s*\"[a-z_]*\",\\s*)4")
            assertTrue(whole.containsMatchIn(text))
            file.writeText(text.replace(whole, "$18"))
        }
        said("encoder and decoder do not belong together") { EdgeKit.open(other, library = library, verify = false) }
    }

    @Test
    fun aSeedGivesTheSameText() {
        open("decoder").use { model ->
            fun drawn(seed: Long) = text(model, "abc", GenerateOptions(chat = false, temperature = 5f, topK = 50, topP = 0.9f, seed = seed))
            assertEquals(drawn(1), drawn(1))
            assertTrue(drawn(1) != drawn(2))
        }
    }

    @Test
    fun promptsThatCannotBeAnsweredAreRefused() {
        open("decoder").use { model ->
            said("UsageException: prompt: is empty") { model.generate("") }
            said("UsageException: maxNewTokens: 0 is less than 1") { model.generate("a", GenerateOptions(maxNewTokens = 0)) }
            said("UsageException: stop: an empty string") { model.generate("a", GenerateOptions(stop = listOf(""))) }
            said("UsageException: topK: -1 is negative") { model.generate("a", GenerateOptions(topK = -1)) }
            val plain = GenerateOptions(chat = false)
            said("UsageException: system: the prompt is continued as it is") { text(model, "a", plain.copy(system = "b")) }
            said("UsageException: prompt: 65 tokens; the context holds 64, the answer included") { text(model, "x".repeat(64), plain) }
        }
        open("linear").use { model ->
            said("UnsupportedException: ${File(bundles, "linear")}: task generic is no language model") { model.generate("a") }
        }
    }

    @Test
    fun endingTheCollectionEndsTheRunAtOnce() {
        open("slow").use { model ->
            val whole = used { text(model, "a", GenerateOptions(maxNewTokens = 1)) }
            assertTrue("the slow model took $whole/100 s only", whole > 160)
            // The collector's thread is never blocked, so that it can also be the one that cancels.
            val cancelled = used {
                runBlocking {
                    val begun = used()
                    val job = launch { model.generate(slowPrompt).toList() }
                    while (used() < begun + STARTED) delay(10)
                    job.cancel()
                    job.join()
                }
            }
            assertTrue("cancelled after $cancelled of $whole", cancelled < STARTED + whole / 3)
            assertFalse(text(model, "a", GenerateOptions(maxNewTokens = 1)).isEmpty())
        }
    }

    @Test
    fun aReaderThatHasEnoughEndsTheRun() {
        open("decoder").use { model ->
            val drawn = GenerateOptions(chat = false, temperature = 5f, seed = 0)
            repeat(20) { assertEquals(1, runBlocking { model.generate("abc", drawn).first() }.length) }
            assertTrue(model.parity(0).passed)
        }
    }

    @Test
    fun oneCallRunsAtATime() {
        open("slow").use { model ->
            runBlocking {
                val begun = used()
                val job = launch(Dispatchers.Default) { model.generate(slowPrompt).toList() }
                while (used() < begun + STARTED) delay(10)
                said("UsageException: ${File(bundles, "slow")}: the model is busy with another call") { model.parity(0) }
                job.cancel()
                job.join()
            }
        }
    }

    @Test
    fun closingEndsWhatRuns() {
        val model = open("slow")
        var error: Throwable? = null
        val begun = used()
        val reader = thread {
            error = runCatching { text(model, slowPrompt) }.exceptionOrNull()
        }
        while (used() < begun + STARTED) Thread.sleep(10)
        assertTrue(used { model.close() } < 150)
        reader.join()
        assertTrue("$error", error is UsageException && "the model was closed; open it again" in error!!.message!!)
        said("UsageException: ${File(bundles, "slow")}: the model was closed") { model.run(emptyMap()) }
        said("UsageException: ${File(bundles, "slow")}: the model was closed") { text(model, "a") }
        model.close()
    }

    @Test
    fun aChangedFileIsNoticed() {
        val copy = File(bundles, "changed").also { File(bundles, "linear").copyRecursively(it, overwrite = true) }
        val vector = File(copy, "vectors/sample-1.safetensors")
        vector.writeBytes(vector.readBytes().also { it[it.size - 1] = (it[it.size - 1] + 1).toByte() })
        said("BundleException: $vector: sha256 is not the manifest's") { EdgeKit.open(copy) }
        EdgeKit.open(copy, verify = false).close()
        said("UsageException: threads: 0 is less than 1") { EdgeKit.open(copy, threads = 0, verify = false) }
    }

    @Test
    fun aGraphThatOnnxRuntimeRefusesIsABundlesError() {
        said("BundleException: ${File(bundles, "broken/model.onnx")}: ONNX Runtime 1.29.0 refuses it: ") {
            EdgeKit.open(File(bundles, "broken"), verify = false)
        }
    }
}
