package dev.edgekit

import dev.edgekit.tokenizer.Tokenizer
import java.io.Closeable
import java.util.concurrent.Semaphore
import kotlin.concurrent.thread
import kotlinx.coroutines.CompletableDeferred
import kotlinx.coroutines.NonCancellable
import kotlinx.coroutines.channels.trySendBlocking
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.channelFlow
import kotlinx.coroutines.withContext

/**
 * An open bundle. Everything but the making of a flow blocks, for milliseconds to minutes: call it from a thread of your own. One call runs
 * at a time; another one meanwhile throws [UsageException]. [close] may be called at any time and ends what runs.
 *
 * All calls throw [BundleException] with ONNX Runtime's words when a run fails, [UsageException] after [close].
 */
public class Model internal constructor(
    private val bundle: Bundle,
    private val session: Session,
    private val encoder: Session? = null,
) : Closeable {
    private val turn = Semaphore(1)
    private var kept: Decoder? = null

    @Volatile
    private var closed = false

    public val manifest: Manifest = bundle.manifest

    /** What the operator library is: version, chosen instruction set, and those that the processor has. Empty where none is needed. */
    public val operators: String = session.operators.substringBefore(';')

    /** The model's own tokenizer; null without tokenizer.json. Throws as [Tokenizer.load] when it is asked for first. */
    public val tokenizer: Tokenizer? by lazy { if (bundle.has(TOKENIZER)) Tokenizer.load(bundle.directory) else null }

    /** Runs the graph, of an encoder-decoder the decoder's: [inputs] and the result by name. Throws [UsageException] for names that the graph does not have. */
    public fun run(inputs: Map<String, Tensor>): Map<String, Tensor> = alone { session.run(inputs) }

    /**
     * Continues [prompt], answers or translates it, in pieces of text as they are made. Nothing runs until the flow is collected; ending the collection
     * ends the run at once, also within a long prompt, and returns when it has ended.
     *
     * Throws [UsageException] for an empty prompt or impossible [options], [UnsupportedException] for a bundle without decoder or
     * tokenizer. The flow throws [UsageException] for a prompt that does not fit, and as [Tokenizer.load].
     */
    public fun generate(prompt: String, options: GenerateOptions = GenerateOptions()): Flow<String> {
        options.check(prompt)
        val info = decoderInfo()
        if (!bundle.has(TOKENIZER)) throw UnsupportedException("${bundle.directory}: no $TOKENIZER; feed token ids to run()")
        return channelFlow {
            val run = Run()
            val ended = CompletableDeferred<Unit>()
            val channel = this
            // A thread of its own: the collector's may have to deliver the cancellation.
            thread(name = "edgekit generate", isDaemon = true) {
                try {
                    alone {
                        val asked = Prompt(checkNotNull(tokenizer), prompt, options, info)
                        run.during {
                            asked.answer(decoder(info, asked.slots), info.eosTokenIds) { channel.trySendBlocking(it).isSuccess }
                        }
                    }
                    ended.complete(Unit)
                } catch (stopped: Stopped) {
                    ended.complete(Unit)
                } catch (error: Throwable) { // handed over, whatever it is
                    ended.completeExceptionally(error)
                }
            }
            try {
                ended.await()
            } finally {
                run.cancel()
                withContext(NonCancellable) { ended.join() }
            }
        }
    }

    /** Replays golden vector number [vector] of the manifest and compares. Throws [UsageException] for a number that has none. */
    public fun parity(vector: Int): ParityResult = alone {
        val golden = bundle.vector(vector)
        val info = manifest.decoder
        val metrics = if (info == null) {
            sampleMetrics(manifest.task, golden, SampleSubject(session, golden).replay(golden), manifest.parity.margin)
        } else {
            textMetrics(golden, replayText(decoder(info, idsOf(golden).size), golden), manifest.parity.margin)
        }
        ParityResult(metrics, manifest.parity, manifest.vectors[vector].kind == "random")
    }

    /**
     * Times of [rounds] rounds: a decoder's prefill of [promptTokens] and [newTokens] tokens one by one, or any other model's latency
     * with its first golden sample. Throws [UsageException] for numbers below 1 or beyond the context, and for a bundle without golden
     * vectors.
     */
    public fun benchmark(promptTokens: Int = 128, newTokens: Int = 64, rounds: Int = 5): List<BenchmarkRow> = alone {
        if (promptTokens < 1 || newTokens < 1 || rounds < 1) {
            throw UsageException("benchmark: promptTokens $promptTokens, newTokens $newTokens, rounds $rounds; 1 is the least")
        }
        val golden = bundle.vector(0)
        val info = manifest.decoder
        val subject = if (info == null) {
            SampleSubject(session, golden)
        } else {
            DecoderSubject(decoder(info, slotsOf(info, promptTokens, newTokens)), info, golden, promptTokens, newTokens)
        }
        subject.first()
        rowsOf(List(rounds) { subject.round() }, promptTokens)
    }

    /** Ends what runs and frees the model's memory. */
    override fun close() {
        closed = true
        encoder?.close()
        session.close()
        synchronized(turn) {
            kept?.close()
            kept = null
        }
    }

    /** One generation's right to end its own run, and only its own. */
    private inner class Run {
        private var cancelled = false
        private var running = false

        fun during(run: () -> Unit) {
            synchronized(this) {
                if (cancelled) throw Stopped()
                running = true
            }
            try {
                run()
            } finally {
                synchronized(this) { running = false }
            }
        }

        fun cancel() {
            synchronized(this) {
                cancelled = true
                if (running) stop()
            }
        }
    }

    private fun <T> alone(run: () -> T): T {
        if (closed) throw closedError()
        if (!turn.tryAcquire()) throw UsageException("${bundle.directory}: the model is busy with another call; wait until it has ended")
        try {
            encoder?.resume()
            session.resume()
            return run()
        } catch (stopped: Stopped) {
            throw if (closed) closedError() else stopped
        } finally {
            turn.release()
        }
    }

    /** The decoder that is kept, or a longer one: its cache is most of a model's memory beside the weights. */
    private fun decoder(info: DecoderInfo, slots: Int): Decoder = synchronized(turn) {
        if (closed) throw closedError()
        kept?.let { if (it.slots >= slots) return it }
        kept?.close()
        kept = null
        Decoder(session, info, slots, encoder).also { kept = it }
    }

    private fun stop() {
        encoder?.stop()
        session.stop()
    }

    /** Slots of the cache that a benchmark fills. Throws [UsageException] when the model has not so many. */
    private fun slotsOf(info: DecoderInfo, promptTokens: Int, newTokens: Int): Int {
        val read = info.encoder?.let { it.startTokens.size } ?: promptTokens
        if (read.toLong() + newTokens > info.maxLength) {
            throw UsageException("benchmark: $read + $newTokens tokens, the model's context holds ${info.maxLength}")
        }
        return read + newTokens
    }

    private fun decoderInfo(): DecoderInfo = manifest.decoder
        ?: throw UnsupportedException("${bundle.directory}: task ${manifest.task} is no language model; nothing to generate")

    private fun closedError() = UsageException("${bundle.directory}: the model was closed; open it again")

    private companion object {
        const val TOKENIZER = "tokenizer.json"
    }
}
