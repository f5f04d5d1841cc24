package dev.edgekit.demo

import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertTrue
import org.junit.Test

class ScreenTest {
    private val opened = Opened(TINY, "tiny · text-generation", vectors = 1, chats = true)

    @Test
    fun `without bundles it says where they come from`() {
        val screen = Screen.of(DemoState())
        assertTrue(screen.summary, screen.summary.startsWith("No bundle is here."))
        assertFalse(screen.canOpen)
    }

    @Test
    fun `buttons follow what is open`() {
        val closed = Screen.of(DemoState(listOf(TINY)))
        assertEquals("Pick a bundle and open it.", closed.summary)
        assertEquals(listOf(true, false, false, false, false), switches(closed))
        assertEquals(listOf(true, true, true, true, false), switches(Screen.of(DemoState(listOf(TINY), opened))))
        val image = opened.copy(vectors = 0, chats = false)
        assertEquals(listOf(true, false, true, false, false), switches(Screen.of(DemoState(listOf(TINY), image))))
    }

    @Test
    fun `while something runs only Stop can be pressed, once`() {
        val state = DemoState(listOf(TINY), opened, Work("Measuring", 40))
        assertEquals(listOf(false, false, false, false, true), switches(Screen.of(state)))
        assertEquals("Measuring", Screen.of(state).status)
        assertEquals(40, Screen.of(state).percent)
        val stopping = Screen.of(state.copy(work = Work("Measuring", 40, stopping = true)))
        assertEquals(listOf(false, false, false, false, false), switches(stopping))
        assertEquals("Stopping: Measuring", stopping.status)
    }

    @Test
    fun `a row says pass, FAIL or that random input proves less`() {
        val rows = listOf(row("000", top1 = 0.995), row("001", passed = false), row("002", passed = false, real = false))
        assertEquals(
            """
            000: pass
              max 1.50e-05 · SQNR 92.3 dB
              cosine 0.999999 · top-1 99.5 %
            001: FAIL
              max 1.50e-05 · SQNR 92.3 dB
              cosine 0.999999
            002: random input, proves less
              max 1.50e-05 · SQNR 92.3 dB
              cosine 0.999999
            """.trimIndent(),
            Screen.of(DemoState(parity = rows)).parity,
        )
    }

    @Test
    fun `the chat shows who said what, and what was stopped`() {
        val turns = listOf(Turn("Hi", "Hello"), Turn("A story", "Once upon", stopped = true))
        assertEquals("› Hi\nHello\n\n› A story\nOnce upon [stopped]", Screen.of(DemoState(chat = turns)).chat)
    }

    private fun switches(screen: Screen): List<Boolean> =
        listOf(screen.canOpen, screen.canCompare, screen.canMeasure, screen.canSend, screen.canStop)
}
