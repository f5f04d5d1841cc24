package dev.edgekit.tokenizer

/** The merges of byte pair encoding, in their order: a hash table from a pair of ids to its rank. */
internal class Merges(count: Int) {
    private val mask = Integer.highestOneBit(maxOf(count, 8)) * 4 - 1
    private val pairs = LongArray(mask + 1) { -1 }
    private val ranks = IntArray(mask + 1)
    private val joined = IntList(count)

    fun add(left: Int, right: Int, both: Int) {
        val slot = slot(left, right)
        pairs[slot] = pair(left, right)
        ranks[slot] = joined.size
        joined.add(both)
    }

    private fun pair(left: Int, right: Int): Long = left.toLong() shl 32 or right.toLong()

    private fun slot(left: Int, right: Int): Int {
        val pair = pair(left, right)
        var slot = (pair * -0x61c8864680b583ebL ushr 32).toInt() and mask // Fibonacci hashing
        while (pairs[slot] != -1L && pairs[slot] != pair) slot = slot + 1 and mask
        return slot
    }

    private fun rank(left: Int, right: Int): Int {
        val slot = slot(left, right)
        return if (pairs[slot] == -1L) -1 else ranks[slot]
    }

    /** Joins neighbours of [symbols], the lowest rank first and of equal ones the leftmost, and adds what is left to [out]. */
    fun apply(symbols: IntList, out: IntList) {
        val word = Word(symbols.toArray())
        val queue = Queue(symbols.size)
        for (at in 0 until symbols.size - 1) propose(word, at, queue)
        while (queue.size > 0) {
            val next = queue.take()
            val at = next.toInt()
            val both = joined.values[(next ushr 32).toInt()]
            // What stood here when it was proposed may be gone; another pair that makes the same token is as good.
            val right = if (word.next[at] == Word.GONE) -1 else word.next[at]
            if (right < 0) continue
            val rank = rank(word.ids[at], word.ids[right])
            if (rank < 0 || joined.values[rank] != both) continue
            word.join(at, both)
            if (word.previous[at] >= 0) propose(word, word.previous[at], queue)
            if (word.next[at] >= 0) propose(word, at, queue)
        }
        var at = if (symbols.size == 0) -1 else 0
        while (at >= 0) {
            out.add(word.ids[at])
            at = word.next[at]
        }
    }

    private fun propose(word: Word, at: Int, queue: Queue) {
        val rank = rank(word.ids[at], word.ids[word.next[at]])
        if (rank >= 0) queue.add(rank.toLong() shl 32 or at.toLong())
    }
}

/** A word's symbols as a linked list. */
private class Word(val ids: IntArray) {
    val next = IntArray(ids.size) { if (it + 1 < ids.size) it + 1 else -1 }
    val previous = IntArray(ids.size) { it - 1 }

    fun join(at: Int, both: Int) {
        val right = next[at]
        ids[at] = both
        next[at] = next[right]
        if (next[right] >= 0) previous[next[right]] = at
        next[right] = GONE
    }

    companion object {
        const val GONE = -2
    }
}

/** A binary heap of longs that gives the smallest first. */
private class Queue(capacity: Int) {
    private var items = LongArray(maxOf(capacity, 4))
    var size = 0
        private set

    fun add(item: Long) {
        if (size == items.size) items = items.copyOf(size * 2)
        var at = size++
        while (at > 0 && items[(at - 1) / 2] > item) {
            items[at] = items[(at - 1) / 2]
            at = (at - 1) / 2
        }
        items[at] = item
    }

    fun take(): Long {
        val first = items[0]
        val last = items[--size]
        var at = 0
        while (true) {
            var child = 2 * at + 1
            if (child >= size) break
            if (child + 1 < size && items[child + 1] < items[child]) child++
            if (items[child] >= last) break
            items[at] = items[child]
            at = child
        }
        items[at] = last
        return first
    }
}
