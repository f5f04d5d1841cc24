package dev.edgekit.tokenizer

/**
 * Token ids to text as it comes: nothing is given out while a character may still be incomplete.
 *
 * The pieces joined are what [tokenizer] makes of all the tokens. Only where bytes that are no UTF-8 follow a character that was given
 * out already, a tokenizer with byte tokens would take that back; here it stays.
 *
 * [before] are tokens that the text continues, not given out; without any, it begins as a new text does.
 */
public class TextStream(private val tokenizer: Tokenizer, before: IntArray = IntArray(0)) {
    private var ids = context(before)
    private var start = 0 // ids before this one are settled and no longer looked at
    private var shown = ids.size // ids whose text was given out; those from start on give context

    /** The text that [id] completes, often one word, sometimes nothing. */
    public fun push(id: Int): String {
        ids += id
        val text = fresh()
        if (text.isEmpty() || text.endsWith('\uFFFD')) return ""
        // What is settled is dropped, so that a long text costs no more per token than a short one.
        ids = ids.copyOfRange(shown, ids.size)
        start = 0
        shown = ids.size
        return text
    }

    /** What was held back, at the end. */
    public fun rest(): String {
        val text = fresh()
        shown = ids.size
        return text
    }

    /** The text of what was not given out, as it stands after its context: many tokenizers drop a leading space. */
    private fun fresh(): String {
        val before = tokenizer.decode(ids.copyOfRange(start, shown))
        val now = tokenizer.decode(ids.copyOfRange(start, ids.size))
        return if (now.startsWith(before)) now.substring(before.length) else tokenizer.decode(ids.copyOfRange(shown, ids.size))
    }

    /** The fewest last tokens that are whole characters: at most four, as a character has at most four bytes. */
    private fun context(before: IntArray): IntArray {
        for (count in 1..4) {
            val end = before.copyOfRange(maxOf(before.size - count, 0), before.size)
            if ('\uFFFD' !in tokenizer.decode(end)) return end
        }
        return IntArray(0)
    }
}
