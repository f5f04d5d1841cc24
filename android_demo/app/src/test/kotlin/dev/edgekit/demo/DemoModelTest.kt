package dev.edgekit.demo

import java.util.concurrent.CountDownLatch
import java.util.concurrent.TimeUnit
import kotlinx.coroutines.CompletableDeferred
import kotlinx.coroutines.awaitCancellation
import kotlinx.coroutines.flow.flow
import org.junit.After
import org.junit.Assert.assertEquals
import org.junit.Assert.assertNull
import org.junit.Assert.assertSame
import org.junit.Assert.assertTrue
import org.junit.Test

class DemoModelTest {
    private val models = ArrayList<DemoModel>()

    @After
    fun closeAll() = models.forEach { it.close() }

    private fun watched(engine: DemoEngine = FakeEngine(), source: BundleSource = FakeSource()): Watched =
        Watched(DemoModel(source, engine).also { models.add(it) })

    private fun opened(bundle: FakeBundle): Watched = watched(FakeEngine { bundle }).also { it.done(Action.Open(TINY)) }

    @Test
    fun `shows the bundles that there are`() {
        assertEquals(listOf(TINY), watched().done(Action.Refresh).bundles)
    }

    @Test
    fun `opens a bundle and shows how far copying and checking are`() {
        val source = FakeSource(preparing = { progress -> progress(30, 200) })
        val screen = watched(source = source)
        screen.model.act(Action.Open(TINY))
        screen.await("copying") { it.work == Work("Copying tiny", 15) }
        screen.await("checking") { it.work == Work("Checking tiny", 50) }
        assertEquals(Opened(TINY, "tiny", 2, true), screen.await("at rest") { it.work == null }.opened)
    }

    @Test
    fun `parity comes in vector by vector`() {
        val screen = opened(FakeBundle(vectors = 3))
        screen.model.act(Action.Parity)
        screen.await("with one row") { it.parity.size == 1 && it.work != null }
        assertEquals(listOf("000", "001", "002"), screen.await("at rest") { it.work == null }.parity.map { it.vector })
    }

    @Test
    fun `a benchmark is shown`() {
        assertEquals(listOf(BenchmarkBar("decode", 20.0, 25.0, 50.0)), opened(FakeBundle()).done(Action.Benchmark).benchmark)
    }

    @Test
    fun `an answer streams into the last turn`() {
        val goOn = CompletableDeferred<Unit>()
        val screen = opened(
            FakeBundle(
                answering = flow {
                    emit("Hel")
                    goOn.await()
                    emit("lo")
                },
            ),
        )
        screen.model.act(Action.Send("Hi"))
        screen.await("half answered") { it.chat == listOf(Turn("Hi", "Hel")) }
        goOn.complete(Unit)
        assertEquals(listOf(Turn("Hi", "Hello")), screen.await("at rest") { it.work == null }.chat)
    }

    @Test
    fun `Stop ends an answer and keeps what there is`() {
        val ended = CountDownLatch(1)
        val answer = flow {
            emit("Once upon")
            try {
                awaitCancellation()
            } finally {
                ended.countDown()
            }
        }
        val screen = opened(FakeBundle(answering = answer))
        screen.model.act(Action.Send("A story"))
        screen.await("answering") { it.chat.lastOrNull()?.answer == "Once upon" }
        screen.model.act(Action.Stop)
        val state = screen.await("at rest") { it.work == null }
        assertEquals(Turn("A story", "Once upon", stopped = true), state.chat.last())
        assertNull(state.error)
        assertTrue("the engine's run goes on", ended.await(300, TimeUnit.SECONDS))
        // The bundle is still good for other things.
        assertEquals(2, screen.done(Action.Parity).parity.size)
    }

    @Test
    fun `Stop ends a copy at its next step`() {
        val copying = CountDownLatch(1)
        val goOn = CountDownLatch(1)
        val source = FakeSource(
            preparing = { progress ->
                copying.countDown()
                goOn.await()
                progress(1, 2)
                throw AssertionError("the copy went on")
            },
        )
        val screen = watched(source = source)
        screen.model.act(Action.Open(TINY))
        copying.await()
        screen.model.act(Action.Stop)
        screen.await("stopping") { it.work?.stopping == true }
        goOn.countDown()
        val state = screen.await("at rest") { it.work == null }
        assertNull(state.opened)
        assertNull(state.error)
    }

    @Test
    fun `a stopped measurement is not shown as one`() {
        val goOn = CountDownLatch(1)
        val measuring = CountDownLatch(1)
        val bundle = FakeBundle(
            measuring = {
                measuring.countDown()
                goOn.await()
                listOf(BenchmarkBar("decode", 1.0, 1.0, null))
            },
        )
        val screen = opened(bundle)
        screen.model.act(Action.Benchmark)
        measuring.await()
        screen.model.act(Action.Stop)
        goOn.countDown()
        assertEquals(emptyList<BenchmarkBar>(), screen.await("at rest") { it.work == null }.benchmark)
    }

    @Test
    fun `one thing runs at a time`() {
        val goOn = CountDownLatch(1)
        val engine = FakeEngine()
        val screen = watched(engine, FakeSource(preparing = { goOn.await() }))
        screen.model.act(Action.Open(TINY))
        screen.model.act(Action.Open(TINY))
        screen.model.act(Action.Benchmark)
        goOn.countDown()
        assertNull(screen.await("at rest") { it.work == null }.error)
        assertEquals(1, engine.opened.size)
    }

    @Test
    fun `a failure is shown, and the next action wipes it away`() {
        var broken = true
        val source = FakeSource(preparing = { if (broken) throw java.io.IOException("disk full") })
        val screen = watched(source = source)
        assertEquals("IOException: disk full", screen.done(Action.Open(TINY)).error)
        assertEquals("IOException: disk full", screen.done(Action.Refresh).error)
        broken = false
        assertNull(screen.done(Action.Open(TINY)).error)
    }

    @Test
    fun `a library that cannot be loaded is a message, not a crash`() {
        val engine = object : DemoEngine {
            override fun open(directory: java.io.File, progress: (Long, Long) -> Unit): OpenBundle =
                throw UnsatisfiedLinkError("libonnxruntime.so not found")
        }
        assertEquals("UnsatisfiedLinkError: libonnxruntime.so not found", watched(engine).done(Action.Open(TINY)).error)
    }

    @Test
    fun `too little memory is said in words`() {
        val screen = opened(FakeBundle(comparing = { throw OutOfMemoryError("2 GB") }))
        val error = screen.done(Action.Parity).error
        assertEquals("This device has not enough memory for that: OutOfMemoryError: 2 GB", error)
    }

    @Test
    fun `without an open bundle every action says so`() {
        for (action in listOf(Action.Parity, Action.Benchmark, Action.Send("Hi"))) {
            assertEquals("No bundle is open; pick one and open it first", watched().done(action).error)
        }
    }

    @Test
    fun `opening another bundle closes the first and forgets its results`() {
        val engine = FakeEngine()
        val screen = watched(engine)
        screen.done(Action.Open(TINY))
        screen.done(Action.Parity)
        screen.done(Action.Send("Hi"))
        val state = screen.done(Action.Open(TINY))
        assertEquals(emptyList<ParityRow>(), state.parity)
        assertEquals(emptyList<Turn>(), state.chat)
        assertEquals(listOf(1, 0), engine.opened.map { it.closed })
    }

    @Test
    fun `close waits for what runs, then closes the bundle`() {
        val goOn = CountDownLatch(1)
        val measuring = CountDownLatch(1)
        val bundle = FakeBundle(
            measuring = {
                measuring.countDown()
                goOn.await()
                emptyList()
            },
        )
        val screen = opened(bundle)
        screen.model.act(Action.Benchmark)
        measuring.await()
        screen.model.close()
        assertEquals("closed while it runs", 0, bundle.closed)
        goOn.countDown()
        val end = System.nanoTime() + TimeUnit.SECONDS.toNanos(300)
        while (bundle.closed == 0 && System.nanoTime() < end) Thread.sleep(5)
        assertEquals(1, bundle.closed)
        val after = screen.model.state
        screen.model.act(Action.Stop)
        assertSame(after, screen.model.state)
    }
}
