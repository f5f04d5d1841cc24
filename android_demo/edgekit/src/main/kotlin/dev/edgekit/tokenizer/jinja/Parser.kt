package dev.edgekit.tokenizer.jinja

/** The statements of a template from its words. Throws TemplateFailure where it is broken, TemplateUnknown for tags that are not known. */
internal class Parser(tokens: List<Token>) {
    private val words = Words(tokens)
    private val expressions = ExpressionParser(words)
    private var depth = 0
    private var loops = 0

    fun template(): List<Statement> = body().also { if (words.now.kind != Kind.END) words.fail("unexpected end tag") }

    /** Up to a block that begins with one of [ends], whose name is the word at hand afterwards. */
    private fun body(vararg ends: String): List<Statement> {
        if (++depth > MAX_DEPTH) words.fail("blocks are nested deeper than $MAX_DEPTH")
        val statements = ArrayList<Statement>()
        while (words.now.kind != Kind.END) {
            val word = words.next()
            when (word.kind) {
                Kind.TEXT -> statements.add(Statement.Text(word.text))
                Kind.PRINT -> {
                    statements.add(Statement.Print(expressions.tuple()))
                    words.endTag()
                }
                else -> {
                    if (words.now.kind == Kind.NAME && words.now.text in ends) break
                    statement(statements)
                }
            }
        }
        if (ends.isNotEmpty() && words.now.kind == Kind.END) words.fail("${ends.last()} is expected")
        depth--
        return statements
    }

    private fun statement(out: MutableList<Statement>) {
        val name = words.name()
        when (name) {
            "if" -> out.add(condition())
            "for" -> out.add(loop())
            "set" -> out.add(set())
            "macro" -> out.add(macro())
            // It marks the assistant's words for training.
            "generation" -> {
                words.endTag()
                out.addAll(body("endgeneration"))
                words.name()
                words.endTag()
            }
            "break", "continue" -> {
                if (loops == 0) words.fail("$name stands outside of a loop")
                out.add(if (name == "break") Statement.Break else Statement.Continue)
                words.endTag()
            }
            "else", "elif" -> words.fail("'$name' without its beginning")
            else -> {
                if (name.startsWith("end")) words.fail("'$name' without its beginning")
                throw TemplateUnknown("the tag '$name' (line ${words.now.line})")
            }
        }
    }

    private fun condition(): Statement {
        val branches = ArrayList<Pair<Expression, List<Statement>>>()
        var otherwise = emptyList<Statement>()
        do {
            val test = expressions.tuple(choices = false)
            words.endTag()
            branches.add(test to body("elif", "else", "endif"))
            val end = words.name()
        } while (end == "elif")
        if (words.before == "else") {
            words.endTag()
            otherwise = body("endif")
            words.name()
        }
        words.endTag()
        return Statement.If(branches, otherwise)
    }

    private fun loop(): Statement {
        val target = target(fields = false)
        words.expect("in")
        val items = expressions.tuple(choices = false)
        val condition = if (words.skip("if")) expressions.expression() else null
        if (words.skip("recursive")) throw TemplateUnknown("a recursive loop")
        words.endTag()
        loops++
        val body = body("else", "endfor")
        loops--
        var otherwise = emptyList<Statement>()
        if (words.name() == "else") {
            words.endTag()
            otherwise = body("endfor")
            words.name()
        }
        words.endTag()
        return Statement.For(target, items, condition, body, otherwise)
    }

    private fun set(): Statement {
        val target = target(fields = true)
        if (words.skip("=")) return Statement.Set(target, expressions.tuple()).also { words.endTag() }
        if (words.now.text == "|") throw TemplateUnknown("a filter on a block that is set")
        words.endTag()
        val body = body("endset")
        words.name()
        words.endTag()
        return Statement.SetBlock(target, body)
    }

    private fun macro(): Statement {
        val name = words.name()
        val parameters = ArrayList<Pair<String, Expression?>>()
        words.expect("(")
        while (!words.skip(")")) {
            if (parameters.isNotEmpty()) words.expect(",")
            parameters.add(words.name() to if (words.skip("=")) expressions.expression() else null)
        }
        words.endTag()
        val outer = loops
        loops = 0 // a loop around the macro is not the macro's
        val body = body("endmacro")
        loops = outer
        words.name()
        words.endTag()
        return Statement.Macro(name, parameters, body)
    }

    private fun target(fields: Boolean): Target {
        val bracket = words.skip("(")
        val first = words.name()
        if (fields && words.skip(".")) return Target.Field(first, words.name())
        val names = arrayListOf(first)
        var several = false
        while (words.skip(",")) {
            several = true
            if (words.now.kind != Kind.NAME || words.now.text == "in") break
            names.add(words.name())
        }
        if (bracket) words.expect(")")
        return if (several) Target.Several(names) else Target.One(first)
    }

    private companion object {
        const val MAX_DEPTH = 100
    }
}

/** The words of a template, one after the other. */
internal class Words(private val tokens: List<Token>) {
    private var at = 0

    val now: Token get() = tokens[at]

    val after: Token get() = tokens[minOf(at + 1, tokens.size - 1)]

    /** The text of the word that was taken last. */
    val before: String get() = tokens[at - 1].text

    fun next(): Token = tokens[at].also { if (it.kind != Kind.END) at++ }

    fun isOne(text: String): Boolean = now.text == text && (now.kind == Kind.NAME || now.kind == Kind.OPERATOR)

    fun skip(text: String): Boolean = isOne(text).also { if (it) at++ }

    fun expect(text: String) {
        if (!skip(text)) fail("'$text' is expected")
    }

    fun name(): String = if (now.kind == Kind.NAME) next().text else fail("a name is expected")

    fun endTag() {
        if (now.kind != Kind.TAG_END) fail("the end of the tag is expected")
        next()
    }

    fun fail(what: String): Nothing = throw TemplateFailure("$what, found ${found()} (line ${now.line})")

    private fun found(): String = if (now.kind == Kind.STRING || now.kind == Kind.END) now.text else "'${now.text.take(40)}'"
}
