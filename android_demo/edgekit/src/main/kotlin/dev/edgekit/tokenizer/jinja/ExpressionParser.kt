package dev.edgekit.tokenizer.jinja

/** Expressions, one function for each level of precedence from `if` down to literals. */
internal class ExpressionParser(private val words: Words) {
    private var depth = 0

    /** An expression, or several between commas, which make a list. Without [choices], an `if` ends it. */
    fun tuple(choices: Boolean = true): Expression {
        val items = ArrayList<Expression>()
        var several = false
        while (true) {
            items.add(if (choices) expression() else nested(::or))
            if (!words.skip(",")) break
            several = true
            if (words.now.kind == Kind.TAG_END || words.isOne(")") || words.isOne("recursive")) break
        }
        return if (several) Expression.Items(items) else items[0]
    }

    fun expression(): Expression = nested(::choice)

    private fun nested(parse: () -> Expression): Expression {
        if (++depth > MAX_DEPTH) words.fail("an expression is nested deeper than $MAX_DEPTH")
        return parse().also { depth-- }
    }

    private fun choice(): Expression {
        var value = or()
        while (words.skip("if")) {
            val condition = or()
            value = Expression.Choice(condition, value, if (words.skip("else")) expression() else null)
        }
        return value
    }

    private fun or(): Expression {
        var left = and()
        while (words.skip("or")) left = Expression.Logic(false, left, and())
        return left
    }

    private fun and(): Expression {
        var left = not()
        while (words.skip("and")) left = Expression.Logic(true, left, not())
        return left
    }

    private fun not(): Expression = if (words.skip("not")) Expression.Not(nested(::not)) else comparison()

    private fun comparison(): Expression {
        val first = sum()
        val rest = ArrayList<Pair<String, Expression>>()
        while (true) {
            val operator = comparator() ?: break
            rest.add(operator to sum())
        }
        return if (rest.isEmpty()) first else Expression.Comparison(first, rest)
    }

    private fun comparator(): String? {
        COMPARATORS.firstOrNull(words::skip)?.let { return it }
        if (!words.isOne("not") || words.after.text != "in") return null
        words.next()
        words.next()
        return "not in"
    }

    private fun sum(): Expression = leftToRight(SUMS) { leftToRight(CONCAT, ::product) }

    private fun product(): Expression = leftToRight(PRODUCTS) { leftToRight(POWERS) { unary(true) } }

    private fun leftToRight(operators: List<String>, operand: () -> Expression): Expression {
        var left = operand()
        while (true) {
            val operator = operators.firstOrNull(words::skip) ?: return left
            left = Expression.Arithmetic(operator, left, operand())
        }
    }

    private fun unary(filters: Boolean): Expression {
        val value = when {
            words.skip("-") -> Expression.Negative(nested { unary(false) })
            words.skip("+") -> Expression.Arithmetic("+", Expression.Constant(0L), nested { unary(false) })
            else -> postfix(primary())
        }
        return if (filters) filtered(value) else value
    }

    private fun postfix(start: Expression): Expression {
        var value = start
        while (true) {
            value = when {
                words.skip(".") -> attribute(value)
                words.skip("[") -> subscript(value)
                words.skip("(") -> Expression.Call(value, arguments())
                else -> return value
            }
        }
    }

    private fun filtered(start: Expression): Expression {
        var value = start
        while (true) {
            value = when {
                words.skip("|") -> Expression.Filter(value, dotted(), optionalArguments())
                words.skip("is") -> test(value)
                words.skip("(") -> Expression.Call(value, arguments())
                else -> return value
            }
        }
    }

    private fun test(of: Expression): Expression {
        val negated = words.skip("not")
        val name = dotted()
        val now = words.now
        if (words.isOne("is")) words.fail("tests with 'is' cannot follow each other")
        val isOperand = now.kind == Kind.STRING || now.kind == Kind.NUMBER || now.text == "[" || now.text == "{" ||
            now.kind == Kind.NAME && now.text !in listOf("else", "or", "and")
        val arguments = if (isOperand) Arguments(listOf(postfix(primary())), emptyMap()) else optionalArguments()
        val test = Expression.Test(of, name, arguments)
        return if (negated) Expression.Not(test) else test
    }

    /** The name of a filter or test, which may hold dots. */
    private fun dotted(): String {
        var name = words.name()
        while (words.skip(".")) name += ".${words.name()}"
        return name
    }

    private fun attribute(of: Expression): Expression {
        val word = words.next()
        return when {
            word.kind == Kind.NAME -> Expression.Attribute(of, word.text)
            word.kind == Kind.NUMBER && word.value is Long -> Expression.Item(of, Expression.Constant(word.value))
            else -> words.fail("a name is expected after '.'")
        }
    }

    private fun subscript(of: Expression): Expression {
        val start = if (words.isOne(":")) null else expression()
        if (!words.skip(":")) {
            words.expect("]")
            return Expression.Item(of, start ?: words.fail("an index is expected"))
        }
        val stop = bound()
        val step = if (words.skip(":")) bound() else null
        words.expect("]")
        return Expression.Slice(of, start, stop, step)
    }

    private fun bound(): Expression? = if (words.isOne(":") || words.isOne("]")) null else expression()

    private fun optionalArguments(): Arguments = if (words.skip("(")) arguments() else Arguments(emptyList(), emptyMap())

    /** After the opening bracket. */
    private fun arguments(): Arguments {
        val positional = ArrayList<Expression>()
        val named = LinkedHashMap<String, Expression>()
        while (!words.skip(")")) {
            if (positional.size + named.size > 0) {
                words.expect(",")
                if (words.skip(")")) break
            }
            if (words.isOne("*") || words.isOne("**")) throw TemplateUnknown("the argument '${words.now.text}' of a call")
            if (words.now.kind == Kind.NAME && words.after.text == "=") {
                val name = words.name()
                words.expect("=")
                if (named.put(name, expression()) != null) words.fail("the argument '$name' is given twice")
            } else {
                if (named.isNotEmpty()) words.fail("an argument with its name is expected after such")
                positional.add(expression())
            }
        }
        return Arguments(positional, named)
    }

    private fun primary(): Expression {
        val word = words.next()
        return when {
            word.kind == Kind.NAME -> name(word.text)
            word.kind == Kind.NUMBER -> Expression.Constant(word.value)
            word.kind == Kind.STRING -> {
                val text = StringBuilder(word.value as String)
                while (words.now.kind == Kind.STRING) text.append(words.next().value as String)
                Expression.Constant(text.toString())
            }
            word.text == "(" -> if (words.skip(")")) Expression.Items(emptyList()) else tuple().also { words.expect(")") }
            word.text == "[" -> Expression.Items(listed("]") { expression() })
            word.text == "{" -> Expression.Entries(listed("}") { expression().also { words.expect(":") } to expression() })
            else -> throw TemplateFailure("unexpected '${word.text}' where a value is expected (line ${word.line})")
        }
    }

    private fun name(name: String): Expression = when (name) {
        "true", "True" -> Expression.Constant(true)
        "false", "False" -> Expression.Constant(false)
        "none", "None" -> Expression.Constant(null)
        else -> Expression.Name(name)
    }

    private fun <T> listed(close: String, item: () -> T): List<T> {
        val items = ArrayList<T>()
        while (!words.skip(close)) {
            if (items.isNotEmpty()) {
                words.expect(",")
                if (words.skip(close)) break
            }
            items.add(item())
        }
        return items
    }

    private companion object {
        const val MAX_DEPTH = 100
        val COMPARATORS = listOf("==", "!=", "<=", ">=", "<", ">", "in")
        val SUMS = listOf("+", "-")
        val CONCAT = listOf("~")
        val PRODUCTS = listOf("*", "//", "/", "%")
        val POWERS = listOf("**")
    }
}
