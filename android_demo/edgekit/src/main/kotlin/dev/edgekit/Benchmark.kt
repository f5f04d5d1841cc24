package dev.edgekit

/**
 * Times of one [phase]: "latency", or a decoder's "prefill" and "decode". Percentiles of [samples] runs, in milliseconds;
 * [tokensPerSecond] is the median's, null where no tokens are made.
 */
public class BenchmarkRow internal constructor(
    public val phase: String,
    public val p50Ms: Double,
    public val p90Ms: Double,
    public val p99Ms: Double,
    public val tokensPerSecond: Double?,
    public val samples: Int,
)

/** What is timed and replayed: a decoder or any other model. */
internal interface Subject {
    /** One prefill of the prompt, or one run of the first golden sample. */
    fun first()

    /** Milliseconds of every run of a round by phase. */
    fun round(): Map<String, List<Double>>

    /** The answer to a golden vector: docs/runner.md. */
    fun replay(vector: Map<String, Tensor>): Map<String, Tensor>
}

/** A model without a cache; [vector] is the golden one whose input is timed. */
internal class SampleSubject(private val session: Session, vector: Map<String, Tensor>) : Subject {
    private val feeds = feedsOf(vector)

    override fun first() {
        session.run(feeds)
    }

    override fun round(): Map<String, List<Double>> = mapOf("latency" to repeated(::first))

    override fun replay(vector: Map<String, Tensor>): Map<String, Tensor> = session.run(feedsOf(vector))
}

/**
 * A language model; the prompt is that of the golden [vector], repeated or cut to [promptTokens]. Behind an encoder that is what it reads,
 * and the decoder begins with its start tokens.
 */
internal class DecoderSubject(
    val decoder: Decoder,
    info: DecoderInfo,
    vector: Map<String, Tensor>?,
    promptTokens: Int,
    private val newTokens: Int,
) : Subject {
    private val source = if (info.encoder == null) null else sourceOf(vector.orEmpty()).mapValues { repeated(it.value, promptTokens) }
    private val prompt = info.encoder?.startTokens?.let { ints(it.toLongArray()) }
        ?: (vector?.let(::idsOf) ?: IntArray(1)).let { text -> IntArray(promptTokens) { text[it % text.size] } }

    override fun first() {
        if (source == null) decoder.reset() else decoder.encode(source)
        decoder.feed(prompt)
    }

    override fun round(): Map<String, List<Double>> {
        val prefill = repeated(::first)
        val token = IntArray(1)
        val decode = List(newTokens) {
            token[0] = Decoder.likeliest(decoder.logits)
            milliseconds { decoder.feed(token) }
        }
        return mapOf("prefill" to prefill, "decode" to decode)
    }

    override fun replay(vector: Map<String, Tensor>): Map<String, Tensor> = replayText(decoder, vector)
}

/** A golden vector's inputs by the graph's names. */
internal fun feedsOf(vector: Map<String, Tensor>): Map<String, Tensor> =
    vector.filterKeys { it.startsWith(INPUT) }.mapKeys { it.key.removePrefix(INPUT) }

/** What a golden vector holds for an encoder, by its inputs' names; nothing where there is none. */
internal fun sourceOf(vector: Map<String, Tensor>): Map<String, Tensor> =
    vector.filterKeys { it.startsWith(SOURCE) }.mapKeys { it.key.removePrefix(SOURCE) }

private fun repeated(row: Tensor, count: Int): Tensor {
    val values = row.longs()
    return Tensor.of(LongArray(count) { values[it % values.size] }, 1, count.toLong())
}

internal fun ints(values: LongArray): IntArray = IntArray(values.size) { Math.toIntExact(values[it]) }

/** The tokens of a golden text. Throws [BundleException] when the vector has none. */
internal fun idsOf(vector: Map<String, Tensor>): IntArray {
    val ids = vector["input.input_ids"]?.longs()
    if (ids == null || ids.isEmpty()) throw BundleException("golden vector: no tokens in input.input_ids; export the model again")
    return IntArray(ids.size) { ids[it].toInt() }
}

/** Median, percentiles and tokens a second of rounds; [promptTokens] are those of one prefill. */
internal fun rowsOf(rounds: List<Map<String, List<Double>>>, promptTokens: Int): List<BenchmarkRow> =
    rounds.first().keys.map { phase ->
        val times = rounds.flatMap { it.getValue(phase) }.toDoubleArray()
        times.sort()
        val median = percentile(times, 0.5)
        val tokens = when (phase) {
            "prefill" -> promptTokens
            "decode" -> 1
            else -> null
        }
        BenchmarkRow(phase, median, percentile(times, 0.9), percentile(times, 0.99), tokens?.let { it * 1e3 / median }, times.size)
    }

/** The value below which [share] of the [sorted] numbers lie, between two of them if need be. */
internal fun percentile(sorted: DoubleArray, share: Double): Double {
    val place = share * (sorted.size - 1)
    val low = place.toInt()
    val high = minOf(low + 1, sorted.size - 1)
    return sorted[low] + (place - low) * (sorted[high] - sorted[low])
}

internal inline fun milliseconds(run: () -> Unit): Double {
    val began = System.nanoTime()
    run()
    return (System.nanoTime() - began) / 1e6
}

private fun repeated(run: () -> Unit): List<Double> {
    val times = ArrayList<Double>()
    val began = System.nanoTime()
    while (times.size < 2 || System.nanoTime() - began < Spec.ROUND_NANOSECONDS && times.size < Spec.ROUND_RUNS) times.add(milliseconds(run))
    return times
}

private const val INPUT = "input."
private const val SOURCE = "${Spec.ENCODER}."
