package dev.edgekit.demo

import java.io.Closeable
import java.util.concurrent.Executors
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Job
import kotlinx.coroutines.SupervisorJob
import kotlinx.coroutines.asCoroutineDispatcher
import kotlinx.coroutines.cancel
import kotlinx.coroutines.ensureActive
import kotlinx.coroutines.launch

/** What is being done; [percent] is null where nobody knows, [stopping] after Stop until it has ended. */
data class Work(val what: String, val percent: Int? = null, val stopping: Boolean = false)

/** A message and the answer so far. */
data class Turn(val message: String, val answer: String = "", val stopped: Boolean = false)

/** An open bundle, as far as the screen shows it. */
data class Opened(val choice: BundleChoice, val summary: String, val vectors: Int, val chats: Boolean)

/** All that the screen shows. */
data class DemoState(
    val bundles: List<BundleChoice> = emptyList(),
    val opened: Opened? = null,
    val work: Work? = null,
    val error: String? = null,
    val parity: List<ParityRow> = emptyList(),
    val benchmark: List<BenchmarkBar> = emptyList(),
    val chat: List<Turn> = emptyList(),
)

/** What the person at the screen wants. */
sealed class Action {
    /** Looks for bundles again. */
    object Refresh : Action()

    data class Open(val choice: BundleChoice) : Action()

    object Parity : Action()

    object Benchmark : Action()

    data class Send(val message: String) : Action()

    object Stop : Action()
}

/**
 * The demo without its screen: takes [Action]s, runs the engine on a thread of its own, and hands every new state to [listener].
 *
 * One thing runs at a time: while [DemoState.work] is there, every action but Stop is ignored. The listener is called on any thread.
 */
class DemoModel(private val source: BundleSource, private val engine: DemoEngine) : Closeable {
    private val thread = Executors.newSingleThreadExecutor { Thread(it, "edgekit") }
    private val scope = CoroutineScope(SupervisorJob() + thread.asCoroutineDispatcher())
    private val lock = Any()
    private var job: Job? = null

    // Only the engine's thread touches it.
    private var bundle: OpenBundle? = null

    @Volatile
    var state: DemoState = DemoState()
        private set

    @Volatile
    var listener: (DemoState) -> Unit = {}

    /** Never blocks; what comes of it is seen in the states that follow. */
    fun act(action: Action) {
        when (action) {
            is Action.Refresh -> start("Looking for bundles", keepError = true) { refresh() }
            is Action.Open -> start("Opening ${action.choice.name}") { open(action.choice) }
            is Action.Parity -> start("Comparing with PyTorch") { parity() }
            is Action.Benchmark -> start("Measuring") { benchmark() }
            is Action.Send -> start("Answering") { reply(action.message) }
            is Action.Stop -> stop()
        }
    }

    /** Ends what runs, closes the bundle when it has ended, and ends the thread. */
    override fun close() {
        if (thread.isShutdown) return
        listener = {}
        scope.cancel()
        thread.execute { closeBundle() }
        thread.shutdown()
    }

    private fun start(what: String, keepError: Boolean = false, run: suspend CoroutineScope.() -> Unit) {
        synchronized(lock) {
            if (state.work != null) return
            // A screen that comes back looks for bundles by itself: that shall not wipe an error away.
            set { it.copy(work = Work(what), error = if (keepError) it.error else null) }
            job = scope.launch {
                try {
                    run()
                } catch (stopped: CancellationException) {
                    throw stopped
                } catch (error: Exception) {
                    set { it.copy(error = describe(error)) }
                } catch (error: LinkageError) {
                    set { it.copy(error = describe(error)) }
                } catch (error: OutOfMemoryError) {
                    set { it.copy(error = "This device has not enough memory for that: ${describe(error)}") }
                }
            }
            // Not in the coroutine: one that is cancelled before it starts never runs.
            job?.invokeOnCompletion { set { it.copy(work = null) } }
        }
    }

    private fun stop() {
        synchronized(lock) {
            if (state.work == null) return
            set { it.copy(work = it.work?.copy(stopping = true)) }
            job?.cancel()
        }
    }

    private fun refresh() {
        val found = source.list()
        set { it.copy(bundles = found) }
    }

    private fun CoroutineScope.open(choice: BundleChoice) {
        closeBundle()
        set { it.copy(opened = null, parity = emptyList(), benchmark = emptyList(), chat = emptyList()) }
        val directory = source.prepare(choice, progress("Copying ${choice.name}"))
        val opened = engine.open(directory, progress("Checking ${choice.name}"))
        bundle = opened
        set { it.copy(opened = Opened(choice, opened.summary, opened.vectors, opened.chats)) }
    }

    private fun CoroutineScope.parity() {
        val bundle = opened()
        set { it.copy(parity = emptyList()) }
        for (vector in 0 until bundle.vectors) {
            ensureActive()
            progress("Comparing with PyTorch")(vector.toLong(), bundle.vectors.toLong())
            val row = bundle.parity(vector)
            set { it.copy(parity = it.parity + row) }
        }
    }

    private fun CoroutineScope.benchmark() {
        val bundle = opened()
        set { it.copy(benchmark = emptyList()) }
        val rows = bundle.benchmark()
        ensureActive() // a stopped measurement is not shown as one
        set { it.copy(benchmark = rows) }
    }

    private suspend fun reply(message: String) {
        val bundle = opened()
        set { it.copy(chat = it.chat + Turn(message)) }
        try {
            bundle.reply(message).collect { piece -> lastTurn { it.copy(answer = it.answer + piece) } }
        } catch (stopped: CancellationException) {
            lastTurn { it.copy(stopped = true) }
            throw stopped
        }
    }

    private fun lastTurn(change: (Turn) -> Turn) = set { it.copy(chat = it.chat.dropLast(1) + change(it.chat.last())) }

    /** Shows bytes as percent, and ends the work where it can be ended. */
    private fun CoroutineScope.progress(what: String): (Long, Long) -> Unit = { done, total ->
        ensureActive()
        val percent = if (total > 0) (done * 100 / total).toInt() else null
        val now = state.work
        if (now != null && (now.percent != percent || now.what != what)) {
            set { it.copy(work = it.work?.copy(what = what, percent = percent)) }
        }
    }

    private fun opened(): OpenBundle = bundle ?: throw IllegalStateException("No bundle is open; pick one and open it first")

    private fun closeBundle() {
        bundle?.close()
        bundle = null
    }

    private fun set(change: (DemoState) -> DemoState) {
        synchronized(lock) {
            state = change(state)
            listener(state)
        }
    }

    /** The engine's own errors are sentences for people; of others the kind matters too. */
    private fun describe(error: Throwable): String {
        val message = error.message ?: return error.javaClass.simpleName
        return if (error.javaClass.name.startsWith("dev.edgekit.") || error is IllegalStateException) {
            message
        } else {
            "${error.javaClass.simpleName}: $message"
        }
    }
}
