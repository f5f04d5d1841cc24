package dev.edgekit.tokenizer.jinja

/** Names and their values; what is not here may be in [parent]. */
private class Scope(private val parent: Scope?, val names: MutableMap<String, Any?> = HashMap()) {
    fun find(name: String): Any? {
        var scope: Scope? = this
        while (scope != null) {
            if (scope.names.containsKey(name)) return scope.names[name]
            scope = scope.parent
        }
        if (name in UNKNOWN_NAMES) throw TemplateUnknown("the name '$name'")
        return Undefined("'$name' is undefined")
    }
}

private enum class End { NORMAL, BREAK, CONTINUE }

/** Runs a template once. A template comes with the model and is not trusted: its steps, its depth and its text are bounded. */
internal class Interpreter {
    private var steps = 0
    private var depth = 0

    /** Throws TemplateFailure when the template is wrong or refuses, TemplateUnknown for what is not known. */
    fun render(template: List<Statement>, names: Map<String, Any?>): String {
        val out = StringBuilder()
        run(template, Scope(Scope(null, HashMap(environment() + names))), out)
        return out.toString()
    }

    private fun run(body: List<Statement>, scope: Scope, out: StringBuilder): End {
        for (statement in body) {
            val end = deeper { run(statement, scope, out) }
            if (end != End.NORMAL) return end
            if (out.length > MAX_TEXT) throw TemplateFailure("the text is longer than $MAX_TEXT")
        }
        return End.NORMAL
    }

    private fun run(statement: Statement, scope: Scope, out: StringBuilder): End {
        when (statement) {
            is Statement.Text -> out.append(statement.text)
            is Statement.Print -> out.append(text(value(statement.value, scope)))
            is Statement.If -> {
                val branch = statement.branches.firstOrNull { isTrue(value(it.first, scope)) }
                return run(branch?.second ?: statement.otherwise, scope, out)
            }
            is Statement.For -> return loop(statement, scope, out)
            is Statement.Set -> assign(statement.target, value(statement.value, scope), scope)
            is Statement.SetBlock -> {
                val text = StringBuilder()
                val end = run(statement.body, Scope(scope), text)
                if (end != End.NORMAL) return end
                assign(statement.target, text.toString(), scope)
            }
            is Statement.Macro -> scope.names[statement.name] = macro(statement, scope)
            is Statement.Break -> return End.BREAK
            is Statement.Continue -> return End.CONTINUE
        }
        return End.NORMAL
    }

    private fun loop(loop: Statement.For, scope: Scope, out: StringBuilder): End {
        val all = items(value(loop.items, scope))
        val items = if (loop.condition == null) all else all.filter { item ->
            isTrue(value(loop.condition, Scope(scope).also { assign(loop.target, item, it) }))
        }
        var isDone = false
        for ((index, item) in items.withIndex()) {
            count(1)
            val inner = Scope(scope)
            inner.names["loop"] = place(items, index)
            assign(loop.target, item, inner)
            val end = run(loop.body, inner, out)
            if (end == End.BREAK) break
            if (end == End.NORMAL) isDone = true
        }
        // As in jinja2: an `else` is for loops of which no round came to its end, by `break` and `continue` too.
        return if (isDone) End.NORMAL else run(loop.otherwise, Scope(scope), out)
    }

    /** What a template sees as `loop`. */
    private fun place(items: List<Any?>, index: Int): Namespace {
        val fields = hashMapOf<String, Any?>(
            "index0" to index.toLong(),
            "index" to index + 1L,
            "revindex0" to items.size - 1L - index,
            "revindex" to (items.size - index).toLong(),
            "length" to items.size.toLong(),
            "first" to (index == 0),
            "last" to (index == items.size - 1),
            "previtem" to if (index > 0) items[index - 1] else Undefined("there is no previous item"),
            "nextitem" to if (index < items.size - 1) items[index + 1] else Undefined("there is no next item"),
        )
        return Namespace(fields)
    }

    private fun assign(target: Target, value: Any?, scope: Scope) {
        when (target) {
            is Target.One -> scope.names[target.name] = value
            is Target.Several -> {
                val items = items(value)
                if (items.size != target.names.size) throw TemplateFailure("${items.size} values for ${target.names.size} names")
                target.names.zip(items) { name, item -> scope.names[name] = item }
            }
            is Target.Field -> {
                val namespace = scope.find(target.namespace) as? Namespace
                    ?: throw TemplateFailure("cannot assign attribute on non-namespace object")
                namespace.fields[target.name] = value
            }
        }
    }

    private fun macro(macro: Statement.Macro, scope: Scope): Function = Function(macro.name) { given ->
        val inner = Scope(scope)
        val arguments = given.take(*macro.parameters.map { it.first }.toTypedArray())
        for ((parameter, argument) in macro.parameters.zip(arguments)) {
            val (name, default) = parameter
            inner.names[name] = when {
                argument !== ABSENT -> argument
                default != null -> value(default, inner)
                else -> Undefined("parameter '$name' was not provided")
            }
        }
        StringBuilder().also { run(macro.body, inner, it) }.toString()
    }

    private inline fun <T> deeper(action: () -> T): T {
        count(1)
        if (++depth > MAX_DEPTH) throw TemplateFailure("it is nested deeper than $MAX_DEPTH")
        return action().also { depth-- }
    }

    private fun count(more: Int) {
        steps += more
        if (steps > MAX_STEPS) throw TemplateFailure("it does not end within $MAX_STEPS steps")
    }

    private fun value(expression: Expression, scope: Scope): Any? {
        val value = deeper { evaluate(expression, scope) }
        // What is large takes long.
        when (value) {
            is String -> count(value.length / SIZE_OF_STEP)
            is List<*>, is Map<*, *> -> count(weight(value) / SIZE_OF_STEP)
        }
        return value
    }

    private fun evaluate(expression: Expression, scope: Scope): Any? = when (expression) {
        is Expression.Constant -> expression.value
        is Expression.Name -> scope.find(expression.name)
        is Expression.Items -> expression.items.map { value(it, scope) }
        is Expression.Entries -> expression.entries.associate { key(value(it.first, scope)) to value(it.second, scope) }
        is Expression.Attribute -> attribute(value(expression.of, scope), expression.name)
        is Expression.Item -> item(value(expression.of, scope), value(expression.index, scope))
        is Expression.Slice -> {
            val (start, stop, step) = listOf(expression.start, expression.stop, expression.step).map { it?.let { value(it, scope) } }
            slice(value(expression.of, scope), start, stop, step)
        }
        is Expression.Call -> call(expression, scope)
        is Expression.Filter -> {
            val given = given("the filter '${expression.name}'", expression.arguments, scope)
            filter(expression.name, value(expression.of, scope), given)
        }
        is Expression.Test -> {
            val given = given("the test '${expression.name}'", expression.arguments, scope)
            passes(expression.name, value(expression.of, scope), given)
        }
        is Expression.Not -> !isTrue(value(expression.of, scope))
        is Expression.Negative -> arithmetic("-", 0L, value(expression.of, scope))
        is Expression.Arithmetic -> arithmetic(expression.operator, value(expression.left, scope), value(expression.right, scope))
        is Expression.Logic -> {
            val left = value(expression.left, scope)
            if (isTrue(left) == expression.isAnd) value(expression.right, scope) else left
        }
        is Expression.Comparison -> isOrdered(expression, scope)
        is Expression.Choice -> when {
            isTrue(value(expression.condition, scope)) -> value(expression.yes, scope)
            expression.no != null -> value(expression.no, scope)
            else -> Undefined("an inline if has no else")
        }
    }

    private fun call(call: Expression.Call, scope: Scope): Any? {
        val callee = value(call.callee, scope)
        if (callee !is Function) {
            val method = (call.callee as? Expression.Attribute)?.name
            if (method != null && callee is Undefined && callee.mayBeMethod) throw TemplateUnknown("the method '$method'")
            throw TemplateFailure((callee as? Undefined)?.why ?: "${kind(callee)} is called")
        }
        return callee.call(given(callee.name, call.arguments, scope))
    }

    private fun given(what: String, arguments: Arguments, scope: Scope): Given =
        Given(what, arguments.positional.map { value(it, scope) }, arguments.named.mapValues { value(it.value, scope) })

    private fun isOrdered(comparison: Expression.Comparison, scope: Scope): Boolean {
        var left = value(comparison.first, scope)
        for ((operator, operand) in comparison.rest) {
            val right = value(operand, scope)
            val holds = when (operator) {
                "==" -> equal(left, right)
                "!=" -> !equal(left, right)
                "in" -> contains(right, left)
                "not in" -> !contains(right, left)
                "<" -> compared(left, right) < 0
                "<=" -> compared(left, right) <= 0
                ">" -> compared(left, right) > 0
                else -> compared(left, right) >= 0
            }
            if (!holds) return false
            left = right
        }
        return true
    }

    private companion object {
        const val MAX_STEPS = 10_000_000
        const val SIZE_OF_STEP = 64
        const val MAX_DEPTH = 300
    }
}
