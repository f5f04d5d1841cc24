package dev.edgekit.demo

import java.util.Locale

/** Texts and switches of the views, made from a state: what the activity does with a state is only to copy this into its views. */
data class Screen(
    val summary: String,
    val error: String?,
    val parity: String,
    val chat: String,
    val status: String?,
    val percent: Int?,
    val canOpen: Boolean,
    val canCompare: Boolean,
    val canMeasure: Boolean,
    val canSend: Boolean,
    val canStop: Boolean,
) {
    companion object {
        fun of(state: DemoState): Screen {
            val idle = state.work == null
            val opened = state.opened
            return Screen(
                summary = opened?.summary ?: none(state),
                error = state.error,
                parity = state.parity.joinToString("\n") { line(it) },
                chat = state.chat.joinToString("\n\n") { turn(it) },
                status = state.work?.let { if (it.stopping) "Stopping: ${it.what}" else it.what },
                percent = state.work?.percent,
                canOpen = idle && state.bundles.isNotEmpty(),
                canCompare = idle && opened != null && opened.vectors > 0,
                canMeasure = idle && opened != null,
                canSend = idle && opened != null && opened.chats,
                canStop = state.work?.stopping == false,
            )
        }

        private fun none(state: DemoState): String =
            if (state.bundles.isEmpty()) {
                "No bundle is here. Build the app with one among its assets, or copy one to " +
                    "Android/data/dev.edgekit.demo/files/bundles with adb."
            } else {
                "Pick a bundle and open it."
            }

        private fun line(row: ParityRow): String {
            val verdict = when {
                !row.real -> "random input, proves less"
                row.passed -> "pass"
                else -> "FAIL"
            }
            val numbers = listOfNotNull(
                "max ${format("%.2e", row.maxAbs)}",
                "SQNR ${format("%.1f", row.sqnrDb)} dB",
                "cosine ${format("%.6f", row.cosine)}",
                row.top1?.let { "top-1 ${format("%.1f", it * 100)} %" },
            )
            return "${row.vector}: $verdict\n  ${numbers.chunked(2).joinToString("\n  ") { it.joinToString(" · ") }}"
        }

        private fun turn(turn: Turn): String = "› ${turn.message}\n${turn.answer}" + if (turn.stopped) " [stopped]" else ""

        private fun format(form: String, value: Double): String = String.format(Locale.ROOT, form, value)
    }
}
