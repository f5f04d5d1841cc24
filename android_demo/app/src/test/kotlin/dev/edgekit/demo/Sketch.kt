package dev.edgekit.demo

import dev.edgekit.Json

/** Prints what the screen says of an example state, as JSON, for tools/draw_layout.py. Arguments: the chart's width and a dp, in pixels. */
fun main(arguments: Array<String>) {
    val state = example()
    val screen = Screen.of(state)
    val chart = Chart.of(state.benchmark, arguments[0].toFloat(), arguments[1].toFloat())
    val texts = mapOf(
        "bundles" to state.opened?.choice.toString(),
        "summary" to screen.summary,
        "error" to screen.error,
        "parity" to screen.parity,
        "chat" to screen.chat,
        "status" to screen.status,
    )
    val switches = mapOf(
        "open" to screen.canOpen,
        "run_parity" to screen.canCompare,
        "run_benchmark" to screen.canMeasure,
        "send" to screen.canSend,
        "stop" to screen.canStop,
    )
    val drawn = mapOf(
        "height" to chart.height,
        "bars" to chart.bars.map { listOf(it.left, it.top, it.right, it.bottom, it.median) },
        "labels" to chart.labels.map { listOf(it.text, it.x, it.y, it.centered) },
        "grid" to chart.gridLines,
        "bottom" to chart.gridBottom,
    )
    println(Json.write(mapOf("texts" to texts, "enabled" to switches, "working" to (screen.status != null), "chart" to drawn)))
}

/** Made up, no measurement: a small model that has been compared and measured, and is answering. */
private fun example() = DemoState(
    bundles = listOf(TINY),
    opened = Opened(
        BundleChoice("smollm2-135m", "in the app", "asset:smollm2-135m"),
        "SmolLM2-135M-Instruct · text-generation · operators: 0.1.0 neon_dotprod · 4 threads",
        vectors = 1,
        chats = true,
    ),
    work = Work("Answering"),
    parity = listOf(row("text", top1 = 1.0)),
    benchmark = listOf(BenchmarkBar("prefill", 300.0, 320.0, 427.0), BenchmarkBar("decode", 20.0, 25.5, 50.0)),
    chat = listOf(Turn("What is a ternary weight?", "A weight that is one of three values: -1, 0 or 1. It takes")),
)
