package dev.edgekit.demo

import java.util.Locale
import kotlin.math.ceil
import kotlin.math.floor
import kotlin.math.log10
import kotlin.math.pow

/** A rectangle to fill, in pixels from the chart's left upper corner. */
data class Bar(val left: Float, val top: Float, val right: Float, val bottom: Float, val median: Boolean)

/** Text to draw from [x] on (or around it, when [centered]), its baseline at [y]. */
data class Label(val text: String, val x: Float, val y: Float, val centered: Boolean = false)

/**
 * Where everything of the benchmark's chart goes: for each phase a title and two bars, p50 and p90, from a common zero on a common
 * scale, each with its number; below them the axis. Empty without rows.
 */
class Chart private constructor(
    val bars: List<Bar>,
    val labels: List<Label>,
    val gridLines: List<Float>,
    val gridBottom: Float,
    val height: Float,
) {
    companion object {
        private const val TEXT = 14f
        private const val TITLE = 24f
        private const val BAR = 18f
        private const val GAP = 4f
        private const val NUMBERS = 112f
        private const val AXIS = 24f

        /** [width] in pixels, [unit] pixels of a dp. Values that are not finite or negative are drawn as 0 and written "?". */
        fun of(rows: List<BenchmarkBar>, width: Float, unit: Float): Chart {
            if (rows.isEmpty()) return Chart(emptyList(), emptyList(), emptyList(), 0f, 0f)
            val scale = Scale(rows.maxOf { maxOf(clean(it.p50Ms), clean(it.p90Ms)) })
            // Room for the numbers beside the longest bar.
            val room = maxOf(width - NUMBERS * unit, width / 4)
            val bars = ArrayList<Bar>()
            val labels = ArrayList<Label>()
            var y = 0f
            for (row in rows) {
                labels.add(Label(title(row), 0f, y + TEXT * unit))
                y += TITLE * unit
                for ((name, value, median) in listOf(Triple("p50", row.p50Ms, true), Triple("p90", row.p90Ms, false))) {
                    val end = (clean(value) / scale.end).toFloat() * room
                    bars.add(Bar(0f, y, end, y + BAR * unit, median))
                    labels.add(Label("$name ${number(value)} ms", end + GAP * unit, y + TEXT * unit))
                    y += (BAR + GAP) * unit
                }
                y += GAP * unit
            }
            val marks = scale.marks()
            val grid = marks.map { (it / scale.end).toFloat() * room }
            marks.zip(grid).forEach { (value, x) -> labels.add(Label(number(value), x, y + TEXT * unit, centered = value > 0)) }
            return Chart(bars, labels, grid, y, y + AXIS * unit)
        }

        private fun title(row: BenchmarkBar): String =
            row.phase + (row.tokensPerSecond?.let { ", ${number(it)} tokens/s" } ?: "")

        private fun clean(value: Double): Double = if (value > 0 && value < Double.MAX_VALUE) value else 0.0

        /** Three digits that count, without exponent. */
        private fun number(value: Double): String = when {
            value == 0.0 -> "0"
            clean(value) == 0.0 -> "?"
            value >= 100 -> String.format(Locale.ROOT, "%.0f", value)
            value >= 10 -> String.format(Locale.ROOT, "%.1f", value)
            else -> String.format(Locale.ROOT, "%.2f", value)
        }
    }

    /** An axis from 0 to at least [largest], in two to five steps of 1, 2 or 5 times a power of ten. */
    private class Scale(largest: Double) {
        private val step: Double = step(if (largest > 0) largest else 1.0)
        private val steps: Int = maxOf(1, ceil((if (largest > 0) largest else 1.0) / step - 1e-9).toInt())
        val end: Double = step * steps

        fun marks(): List<Double> = List(steps + 1) { it * step }

        private fun step(largest: Double): Double {
            val power = 10.0.pow(floor(log10(largest / 2)))
            return listOf(5, 2, 1).map { it * power }.firstOrNull { largest / it >= 2 } ?: power
        }
    }
}
