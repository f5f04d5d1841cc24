package dev.edgekit.demo

import java.io.File
import java.util.concurrent.LinkedBlockingQueue
import java.util.concurrent.TimeUnit
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.flow
import org.junit.Assert.fail

val TINY = BundleChoice("tiny", "in the app", "asset:tiny")

fun row(vector: String, passed: Boolean = true, real: Boolean = true, top1: Double? = null): ParityRow =
    ParityRow(vector, maxAbs = 1.5e-5, sqnrDb = 92.34, cosine = 0.99999912, top1 = top1, passed = passed, real = real)

/** Bundles without files. [preparing] is called with the progress callback, where a test may stay, stop or fail. */
class FakeSource(
    var bundles: List<BundleChoice> = listOf(TINY),
    var preparing: (progress: (Long, Long) -> Unit) -> Unit = {},
) : BundleSource {
    override fun list(): List<BundleChoice> = bundles

    override fun prepare(choice: BundleChoice, progress: (done: Long, total: Long) -> Unit): File {
        preparing(progress)
        return File("/bundles", choice.name)
    }
}

/** An engine that gives out [FakeBundle]s; [opened] are all of them. */
class FakeEngine(private val make: () -> FakeBundle = { FakeBundle() }) : DemoEngine {
    val opened: MutableList<FakeBundle> = ArrayList()

    override fun open(directory: File, progress: (done: Long, total: Long) -> Unit): OpenBundle {
        progress(1, 2)
        return make().also { opened.add(it) }
    }
}

class FakeBundle(
    override val vectors: Int = 2,
    override val chats: Boolean = true,
    private val comparing: (Int) -> ParityRow = { row("00$it") },
    private val measuring: () -> List<BenchmarkBar> = { listOf(BenchmarkBar("decode", 20.0, 25.0, 50.0)) },
    private val answering: Flow<String> = flow { listOf("Hel", "lo").forEach { emit(it) } },
) : OpenBundle {
    @Volatile
    var closed: Int = 0
    override val summary: String = "tiny"

    override fun parity(vector: Int): ParityRow = comparing(vector)

    override fun benchmark(): List<BenchmarkBar> = measuring()

    override fun reply(message: String): Flow<String> = answering

    override fun close() {
        closed++
    }
}

/** All states that a model has gone through, in order. */
class Watched(val model: DemoModel) {
    private val states = LinkedBlockingQueue<DemoState>()

    init {
        model.listener = { states.add(it) }
    }

    /** Waits for a state like this; the states up to it are used up. */
    fun await(what: String, wanted: (DemoState) -> Boolean): DemoState {
        val end = System.nanoTime() + TimeUnit.SECONDS.toNanos(300)
        while (true) {
            val state = states.poll(end - System.nanoTime(), TimeUnit.NANOSECONDS)
            if (state == null) fail("no state $what within 300 s; the last is ${model.state}")
            if (wanted(state!!)) return state
        }
    }

    /** Does it, and waits until nothing runs any more. */
    fun done(action: Action): DemoState {
        model.act(action)
        return await("at rest after $action") { it.work == null }
    }
}
