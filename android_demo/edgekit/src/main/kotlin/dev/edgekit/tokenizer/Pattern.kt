package dev.edgekit.tokenizer

import dev.edgekit.UnsupportedException

/**
 * A regular expression of tokenizer.json, matched as Oniguruma does, by backtracking.
 *
 * Not java.util.regex: what its classes hold depends on the device's Unicode, and Android's dialect is not the JVM's.
 */
internal class Pattern private constructor(private val start: Node, private val loops: Int, private val least: Int) {
    /** Whether it could match without taking a character. */
    val canBeEmpty: Boolean get() = least == 0


    /**
     * Calls [action] with start, end and whether it is a match for every part of [text], in order; together they cover it. An empty
     * text is one part without match.
     */
    fun parts(text: String, action: (start: Int, end: Int, isMatch: Boolean) -> Unit) {
        if (text.isEmpty()) return action(0, 0, false)
        val run = Run(text, loops)
        var done = 0
        var from = 0
        var lastMatch = -1
        while (from <= text.length) {
            val begin = run.search(start, from)
            if (begin < 0) break
            val end = run.end
            if (begin == end && end == lastMatch) { // an empty match directly after a match does not count
                from = after(text, from)
                continue
            }
            if (done != begin) action(done, begin, false)
            action(begin, end, true)
            done = end
            from = end
            lastMatch = end
        }
        if (done != text.length) action(done, text.length, false)
    }

    companion object {
        fun regex(pattern: String): Pattern = compile(PatternParser(pattern).parse())

        fun literal(text: String): Pattern {
            val points = ArrayList<Syntax>()
            forEachCodePoint(text) { points.add(Syntax.Point(it)) }
            return compile(Syntax.Chain(points))
        }

        private fun compile(syntax: Syntax): Pattern {
            val compiler = PatternCompiler()
            val start = compiler.node(syntax, Node.Accept)
            return Pattern(start, compiler.loops, compiler.least(syntax))
        }
    }
}

/** One text being searched. */
internal class Run(val text: String, loops: Int) {
    /** Where each running loop began its turn: a turn that takes nothing is its last. */
    val turns = IntArray(loops)
    var depth = 0
    var end = 0
    private var tries = 0

    /** Where the first match at or after [from] begins, or -1; [end] is its end. */
    fun search(start: Node, from: Int): Int {
        var at = from
        while (at <= text.length) {
            depth = 0
            tries = 0
            end = start.match(this, at)
            if (end >= 0) return at
            at = after(text, at)
        }
        return -1
    }

    /** Counts a turn of a loop, which is one too many when the stack could end, or when there are too many ways to match. */
    fun turn() {
        if (++depth > MAX_DEPTH) {
            throw UnsupportedException("a regular expression of the tokenizer repeats a group more than $MAX_DEPTH times in this text")
        }
        if (++tries > MAX_TRIES) {
            throw UnsupportedException("a regular expression of the tokenizer tries more than $MAX_TRIES ways to match this text")
        }
    }

    private companion object {
        const val MAX_DEPTH = 2000 // each takes a few frames of a stack that may be small
        const val MAX_TRIES = 10_000_000
    }
}

private fun after(text: String, at: Int): Int = if (at < text.length) at + Character.charCount(text.codePointAt(at)) else at + 1

/** A step of a match, which knows what comes after it. */
internal sealed class Node {
    /** Where the whole match ends when this step begins at [at], or -1. */
    abstract fun match(run: Run, at: Int): Int

    object Accept : Node() {
        override fun match(run: Run, at: Int): Int = at
    }

    class Literal(private val text: String, private val next: Node) : Node() {
        override fun match(run: Run, at: Int): Int =
            if (run.text.startsWith(text, at)) next.match(run, at + text.length) else -1
    }

    class One(private val set: CodePointSet, private val next: Node) : Node() {
        override fun match(run: Run, at: Int): Int {
            if (at >= run.text.length) return -1
            val point = run.text.codePointAt(at)
            return if (point in set) next.match(run, at + Character.charCount(point)) else -1
        }
    }

    /** Repeats one class, without recursion: the loop that almost all the time goes into. */
    class Many(
        private val set: CodePointSet,
        private val min: Int,
        private val max: Int,
        private val greed: Greed,
        private val next: Node,
    ) : Node() {
        override fun match(run: Run, at: Int): Int {
            val text = run.text
            var to = at
            var count = 0
            val enough = if (greed == Greed.LAZY) min else max
            while (count < enough) {
                val step = step(text, to)
                if (step == 0) break
                to += step
                count++
            }
            return when {
                count < min -> -1
                greed == Greed.POSSESSIVE -> next.match(run, to)
                greed == Greed.LAZY -> grow(run, to, count)
                else -> shrink(run, to, count)
            }
        }

        private fun shrink(run: Run, from: Int, taken: Int): Int {
            var to = from
            var count = taken
            while (true) {
                val end = next.match(run, to)
                if (end >= 0 || count == min) return end
                to -= Character.charCount(run.text.codePointBefore(to))
                count--
            }
        }

        private fun grow(run: Run, from: Int, taken: Int): Int {
            var to = from
            var count = taken
            while (true) {
                val end = next.match(run, to)
                if (end >= 0 || count == max) return end
                val step = step(run.text, to)
                if (step == 0) return -1
                to += step
                count++
            }
        }

        private fun step(text: String, at: Int): Int {
            if (at >= text.length) return 0
            val point = text.codePointAt(at)
            return if (point in set) Character.charCount(point) else 0
        }
    }

    class Choice(private val branches: Array<Node>) : Node() {
        override fun match(run: Run, at: Int): Int {
            for (branch in branches) {
                val end = branch.match(run, at)
                if (end >= 0) return end
            }
            return -1
        }
    }

    /** Any number of turns of [body], which ends in [Again]. */
    class Loop(val slot: Int, private val greedy: Boolean, val next: Node) : Node() {
        lateinit var body: Node

        override fun match(run: Run, at: Int): Int {
            if (!greedy) {
                val end = next.match(run, at)
                if (end >= 0) return end
            }
            run.turn()
            val before = run.turns[slot]
            run.turns[slot] = at
            val end = body.match(run, at)
            run.depth--
            if (end >= 0) return end
            run.turns[slot] = before
            return if (greedy) next.match(run, at) else -1
        }
    }

    class Again(private val loop: Loop) : Node() {
        override fun match(run: Run, at: Int): Int =
            if (at == run.turns[loop.slot]) loop.next.match(run, at) else loop.match(run, at)
    }

    class Ahead(private val body: Node, private val negative: Boolean, private val next: Node) : Node() {
        override fun match(run: Run, at: Int): Int =
            if (body.match(run, at) >= 0 != negative) next.match(run, at) else -1
    }

    /** [bodies] by how many code points they take. */
    class Behind(private val bodies: List<Pair<Int, Node>>, private val negative: Boolean, private val next: Node) : Node() {
        override fun match(run: Run, at: Int): Int {
            val found = bodies.any { (width, body) -> before(run.text, at, width).let { it >= 0 && body.match(run, it) >= 0 } }
            return if (found != negative) next.match(run, at) else -1
        }

        private fun before(text: String, at: Int, width: Int): Int {
            var to = at
            repeat(width) {
                if (to == 0) return -1
                to -= Character.charCount(text.codePointBefore(to))
            }
            return to
        }
    }

    class Atomic(private val body: Node, private val next: Node) : Node() {
        override fun match(run: Run, at: Int): Int {
            val end = body.match(run, at)
            return if (end >= 0) next.match(run, end) else -1
        }
    }

    class Place(private val anchor: Anchor, private val next: Node) : Node() {
        override fun match(run: Run, at: Int): Int = if (holds(run.text, at)) next.match(run, at) else -1

        private fun holds(text: String, at: Int): Boolean = when (anchor) {
            Anchor.TEXT_START -> at == 0
            Anchor.TEXT_END -> at == text.length
            Anchor.LAST_LINE_END -> at == text.length || at == text.length - 1 && text[at] == '\n'
            Anchor.LINE_START -> at == 0 || at < text.length && text[at - 1] == '\n'
            Anchor.LINE_END -> at == text.length || text[at] == '\n'
        }
    }
}

/** Turns [Syntax] into nodes, from the end to the beginning. */
private class PatternCompiler {
    var loops = 0
        private set
    private var nodes = 0

    fun node(syntax: Syntax, next: Node): Node {
        if (++nodes > MAX_NODES) throw UnsupportedException("a regular expression of the tokenizer has more than $MAX_NODES steps")
        return when (syntax) {
            is Syntax.Point -> Node.Literal(String(Character.toChars(syntax.point)), next)
            is Syntax.Chars -> Node.One(syntax.set, next)
            is Syntax.Chain -> syntax.parts.asReversed().fold(next) { after, part -> node(part, after) }
            is Syntax.Choice -> Node.Choice(Array(syntax.branches.size) { node(syntax.branches[it], next) })
            is Syntax.Repeat -> repeat(syntax, next)
            is Syntax.Look -> look(syntax, next)
            is Syntax.Atomic -> Node.Atomic(node(syntax.part, Node.Accept), next)
            is Syntax.Place -> Node.Place(syntax.anchor, next)
        }
    }

    private fun repeat(syntax: Syntax.Repeat, next: Node): Node {
        val part = syntax.part
        val set = if (part is Syntax.Chars) part.set else (part as? Syntax.Point)?.let { CodePointSet.of(it.point) }
        if (set != null) return Node.Many(set, syntax.min, syntax.max, syntax.greed, next)
        if (syntax.greed == Greed.POSSESSIVE) {
            return Node.Atomic(repeat(Syntax.Repeat(part, syntax.min, syntax.max, Greed.GREEDY), Node.Accept), next)
        }
        var after = if (syntax.max == Int.MAX_VALUE) loop(syntax, next) else optional(syntax, next)
        repeat(syntax.min) { after = node(part, after) }
        return after
    }

    private fun loop(syntax: Syntax.Repeat, next: Node): Node {
        val loop = Node.Loop(loops++, syntax.greed == Greed.GREEDY, next)
        loop.body = node(syntax.part, Node.Again(loop))
        return loop
    }

    private fun optional(syntax: Syntax.Repeat, next: Node): Node {
        var after = next
        repeat(syntax.max - syntax.min) {
            val taken = node(syntax.part, after)
            after = Node.Choice(if (syntax.greed == Greed.GREEDY) arrayOf(taken, next) else arrayOf(next, taken))
        }
        return after
    }

    private fun look(syntax: Syntax.Look, next: Node): Node {
        if (syntax.ahead) return Node.Ahead(node(syntax.part, Node.Accept), syntax.negative, next)
        val branches = (syntax.part as? Syntax.Choice)?.branches ?: listOf(syntax.part)
        return Node.Behind(branches.map { width(it) to node(it, Node.Accept) }, syntax.negative, next)
    }

    /** The fewest code points that a match takes. */
    fun least(syntax: Syntax): Int = when (syntax) {
        is Syntax.Point, is Syntax.Chars -> 1
        is Syntax.Place, is Syntax.Look -> 0
        is Syntax.Chain -> syntax.parts.sumOf { least(it) }
        is Syntax.Atomic -> least(syntax.part)
        is Syntax.Repeat -> if (syntax.min == 0) 0 else least(syntax.part)
        is Syntax.Choice -> syntax.branches.minOf { least(it) }
    }

    private fun width(syntax: Syntax): Int = when (syntax) {
        is Syntax.Point, is Syntax.Chars -> 1
        is Syntax.Place, is Syntax.Look -> 0
        is Syntax.Chain -> syntax.parts.sumOf { width(it) }
        is Syntax.Atomic -> width(syntax.part)
        is Syntax.Repeat -> if (syntax.min == syntax.max) syntax.min * width(syntax.part) else varying()
        is Syntax.Choice -> syntax.branches.map { width(it) }.distinct().singleOrNull() ?: varying()
    }

    private fun varying(): Nothing = throw UnsupportedException("a look-behind of varying length is not supported")

    private companion object {
        const val MAX_NODES = 20_000
    }
}
