package dev.edgekit.tokenizer.jinja

internal sealed class Expression {
    class Constant(val value: Any?) : Expression()
    class Name(val name: String) : Expression()
    class Items(val items: List<Expression>) : Expression()
    class Entries(val entries: List<Pair<Expression, Expression>>) : Expression()
    class Attribute(val of: Expression, val name: String) : Expression()
    class Item(val of: Expression, val index: Expression) : Expression()
    class Slice(val of: Expression, val start: Expression?, val stop: Expression?, val step: Expression?) : Expression()
    class Call(val callee: Expression, val arguments: Arguments) : Expression()
    class Filter(val of: Expression, val name: String, val arguments: Arguments) : Expression()
    class Test(val of: Expression, val name: String, val arguments: Arguments) : Expression()
    class Not(val of: Expression) : Expression()
    class Negative(val of: Expression) : Expression()

    /** `+ - * / // % ** ~`. */
    class Arithmetic(val operator: String, val left: Expression, val right: Expression) : Expression()

    /** `and`, `or`: the value of the last operand that was looked at. */
    class Logic(val isAnd: Boolean, val left: Expression, val right: Expression) : Expression()

    /** `a < b <= c`: each operator with its right side. */
    class Comparison(val first: Expression, val rest: List<Pair<String, Expression>>) : Expression()

    /** `yes if condition else no`. */
    class Choice(val condition: Expression, val yes: Expression, val no: Expression?) : Expression()
}

internal class Arguments(val positional: List<Expression>, val named: Map<String, Expression>)

/** Where `set` and `for` put a value. */
internal sealed class Target {
    class One(val name: String) : Target()

    /** Each item of the value to its name. */
    class Several(val names: List<String>) : Target()

    class Field(val namespace: String, val name: String) : Target()
}

internal sealed class Statement {
    class Text(val text: String) : Statement()
    class Print(val value: Expression) : Statement()
    class If(val branches: List<Pair<Expression, List<Statement>>>, val otherwise: List<Statement>) : Statement()
    class For(
        val target: Target, val items: Expression, val condition: Expression?, val body: List<Statement>, val otherwise: List<Statement>
    ) : Statement()
    class Set(val target: Target, val value: Expression) : Statement()
    class SetBlock(val target: Target, val body: List<Statement>) : Statement()
    class Macro(val name: String, val parameters: List<Pair<String, Expression?>>, val body: List<Statement>) : Statement()
    object Break : Statement()
    object Continue : Statement()
}
