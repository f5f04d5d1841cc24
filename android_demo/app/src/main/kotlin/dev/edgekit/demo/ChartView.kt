package dev.edgekit.demo

import android.content.Context
import android.graphics.Canvas
import android.graphics.Paint
import android.util.AttributeSet
import android.view.View

/** Draws a [Chart] in the colours of the theme. Without rows it takes no room. */
class ChartView(context: Context, attributes: AttributeSet?) : View(context, attributes) {
    private val unit = resources.displayMetrics.density
    private val median = Paint().apply { color = color(R.color.median) }
    private val ninety = Paint().apply { color = color(R.color.ninety) }
    private val text = Paint(Paint.ANTI_ALIAS_FLAG).apply {
        color = themeColor(android.R.attr.textColorPrimary)
        textSize = 12 * resources.displayMetrics.scaledDensity
    }
    private val line = Paint().apply {
        color = themeColor(android.R.attr.textColorSecondary)
        alpha = 64
        strokeWidth = unit
    }
    private var chart = Chart.of(emptyList(), 0f, unit)

    /** What is drawn; setting it lays the view out anew. */
    var rows: List<BenchmarkBar> = emptyList()
        set(value) {
            if (field == value) return
            field = value
            contentDescription = value.joinToString("; ") { "${it.phase}: p50 ${it.p50Ms} ms, p90 ${it.p90Ms} ms" }
            requestLayout()
            invalidate()
        }

    override fun onMeasure(widthMeasureSpec: Int, heightMeasureSpec: Int) {
        val width = MeasureSpec.getSize(widthMeasureSpec)
        chart = Chart.of(rows, width.toFloat(), unit)
        setMeasuredDimension(width, resolveSize(chart.height.toInt(), heightMeasureSpec))
    }

    override fun onDraw(canvas: Canvas) {
        for (x in chart.gridLines) canvas.drawLine(x, 0f, x, chart.gridBottom, line)
        for (bar in chart.bars) canvas.drawRect(bar.left, bar.top, bar.right, bar.bottom, if (bar.median) median else ninety)
        for (label in chart.labels) {
            text.textAlign = if (label.centered) Paint.Align.CENTER else Paint.Align.LEFT
            canvas.drawText(label.text, label.x, label.y, text)
        }
    }

    @Suppress("DEPRECATION") // the newer call is not in every android.jar that this is built against
    private fun color(id: Int): Int = resources.getColor(id)

    private fun themeColor(attribute: Int): Int {
        val found = context.theme.obtainStyledAttributes(intArrayOf(attribute))
        return found.getColor(0, 0).also { found.recycle() }
    }
}
