package dev.edgekit

import kotlin.math.exp
import kotlin.math.ln
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test

class SamplingTest {
    private val chances = doubleArrayOf(0.1, 0.4, 0.2, 0.25, 0.05)
    private val logits = FloatArray(5) { ln(chances[it]).toFloat() }

    private fun probabilities(temperature: Float = 1f, topK: Int = 0, topP: Float = 1f) =
        Sampling(temperature, topK, topP, 0).probabilities(logits)

    private fun normalized(vararg values: Double) = values.map { it / values.sum() }.toDoubleArray()

    @Test
    fun theLikeliestIsTheLowestOfEquals() {
        assertEquals(1, Decoder.likeliest(floatArrayOf(1f, 3f, 3f, 2f)))
        assertEquals(0, Decoder.likeliest(floatArrayOf(Float.NEGATIVE_INFINITY, Float.NEGATIVE_INFINITY)))
        assertEquals(1, Decoder.likeliest(floatArrayOf(9f, Float.NaN, 10f)))
        assertEquals(1, Sampling(0f, 0, 1f, null).draw(logits))
    }

    @Test
    fun temperatureFlattens() {
        assertArrayEquals(chances, probabilities(), 1e-7)
        assertArrayEquals(normalized(*chances.map { exp(ln(it) / 2) }.toDoubleArray()), probabilities(temperature = 2f), 1e-7)
    }

    @Test
    fun topKKeepsTheLikeliest() {
        assertArrayEquals(normalized(0.0, 0.4, 0.0, 0.25, 0.0), probabilities(topK = 2), 1e-7)
        assertArrayEquals(normalized(0.1, 0.4, 0.2, 0.25, 0.0), probabilities(topK = 4), 1e-7)
        assertArrayEquals(chances, probabilities(topK = 5), 1e-7)
        val equal = Sampling(1f, 1, 1f, 0).probabilities(floatArrayOf(2f, 2f, 1f))
        assertArrayEquals(doubleArrayOf(0.5, 0.5, 0.0), equal, 0.0)
    }

    @Test
    fun topPKeepsTheFewestThatReachIt() {
        assertArrayEquals(normalized(0.0, 0.4, 0.0, 0.25, 0.0), probabilities(topP = 0.6f), 1e-7)
        assertArrayEquals(normalized(0.0, 1.0, 0.0, 0.0, 0.0), probabilities(topP = 1e-6f), 1e-7)
        assertArrayEquals(normalized(0.1, 0.4, 0.2, 0.25, 0.0), probabilities(topP = 0.9f), 1e-7)
    }

    @Test
    fun drawsAreAsFrequentAsProbable() {
        val sampling = Sampling(1f, 4, 1f, 42)
        val counts = IntArray(5)
        repeat(20_000) { counts[sampling.draw(logits)]++ }
        for ((index, expected) in normalized(0.1, 0.4, 0.2, 0.25, 0.0).withIndex()) {
            assertEquals(expected, counts[index] / 20_000.0, 0.015)
        }
        assertEquals(0, counts[4])
    }

    @Test
    fun aSeedGivesTheSameDraws() {
        fun draws(seed: Long?) = Sampling(1f, 0, 1f, seed).let { sampling -> List(50) { sampling.draw(logits) } }
        assertEquals(draws(7), draws(7))
        assertTrue(draws(7) != draws(8))
    }

    @Test
    fun impossibleNumbersAreRefused() {
        fun refused(expected: String, make: () -> Unit) =
            assertEquals(expected, assertThrows(UsageException::class.java) { make() }.message)
        refused("temperature: -1.0 is negative; 0 takes the likeliest token, 0.7 is usual") { Sampling(-1f, 0, 1f, null) }
        refused("temperature: NaN is negative; 0 takes the likeliest token, 0.7 is usual") { Sampling(Float.NaN, 0, 1f, null) }
        refused("topK: -1 is negative; 0 considers all tokens") { Sampling(1f, -1, 1f, null) }
        refused("topP: 0.0 is outside (0, 1]; 1 considers all tokens") { Sampling(1f, 0, 0f, null) }
        refused("seed: -3 is negative") { Sampling(1f, 0, 1f, -3) }
    }

    @Test
    fun stopStringsCutTheText() {
        fun told(stops: List<String>, vararg pieces: String): String {
            val text = StopStrings(stops)
            val out = StringBuilder()
            for (piece in pieces) {
                out.append(text.push(piece)).append('|')
                if (text.hit) return out.append('!').toString()
            }
            return out.append(text.rest()).toString()
        }
        assertEquals("ab|c|", told(emptyList(), "ab", "c"))
        assertEquals("a|||!", told(listOf("STOP"), "aST", "", "OPb"))
        assertEquals("a|STx|", told(listOf("STOP"), "aST", "x"))
        assertEquals("a|ST", told(listOf("STOP", "TO"), "aST"))
        assertEquals("a|S|!", told(listOf("STOP", "TO"), "aST", "O"))
    }
}
