package dev.edgekit.demo

import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test

class ChartTest {
    private val prefill = BenchmarkBar("prefill", 300.0, 320.0, 426.7)
    private val decode = BenchmarkBar("decode", 20.04, 25.5, 49.9)

    @Test
    fun `no rows take no room`() {
        assertEquals(0f, Chart.of(emptyList(), 1080f, 3f).height)
    }

    @Test
    fun `bars are as long as their values, from a common zero`() {
        val bars = Chart.of(listOf(prefill, decode), 1080f, 3f).bars
        assertEquals(4, bars.size)
        assertEquals(listOf(0f, 0f, 0f, 0f), bars.map { it.left })
        assertEquals(listOf(true, false, true, false), bars.map { it.median })
        val perMs = bars[0].right / 300
        assertEquals(320 * perMs, bars[1].right, 0.01f)
        assertEquals(20.04f * perMs, bars[2].right, 0.01f)
    }

    @Test
    fun `every number is written once and in order`() {
        val texts = Chart.of(listOf(prefill, decode), 1080f, 3f).labels.map { it.text }
        assertEquals(
            listOf(
                "prefill, 427 tokens/s", "p50 300 ms", "p90 320 ms", "decode, 49.9 tokens/s", "p50 20.0 ms", "p90 25.5 ms",
                "0", "100", "200", "300", "400",
            ),
            texts,
        )
    }

    @Test
    fun `everything lies inside, nothing on top of another`() {
        for (width in listOf(200f, 1080f, 2400f)) {
            val chart = Chart.of(listOf(prefill, decode), width, 3f)
            assertTrue(chart.bars.all { it.right <= width && it.bottom <= chart.gridBottom })
            assertTrue(chart.labels.all { it.y <= chart.height })
            for ((above, below) in chart.bars.zipWithNext()) assertTrue("$above $below", above.bottom <= below.top)
        }
    }

    @Test
    fun `the axis has two to five steps and ends beyond the largest value`() {
        var largest = 1e-4
        while (largest < 1e7) {
            val chart = Chart.of(listOf(BenchmarkBar("latency", largest / 2, largest, null)), 1000f, 1f)
            assertTrue("$largest: ${chart.gridLines}", chart.gridLines.size in 3..6)
            assertTrue("$largest", chart.bars.maxOf { it.right } <= chart.gridLines.last() + 0.01f)
            largest *= 1.37
        }
    }

    @Test
    fun `values that are none are drawn as zero`() {
        val rows = listOf(BenchmarkBar("latency", Double.NaN, Double.POSITIVE_INFINITY, null), BenchmarkBar("x", -1.0, 0.0, null))
        val chart = Chart.of(rows, 1000f, 1f)
        assertEquals(listOf(0f, 0f, 0f, 0f), chart.bars.map { it.right })
        assertTrue(chart.gridLines.all { it.isFinite() })
        val texts = chart.labels.map { it.text }
        assertTrue("$texts", "p50 ? ms" in texts && "p90 ? ms" in texts)
    }
}
