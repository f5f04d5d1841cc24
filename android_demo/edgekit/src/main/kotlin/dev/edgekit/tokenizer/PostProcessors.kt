package dev.edgekit.tokenizer

/** The tokens of one text with those that belong around it: in [parts] null stands for the text itself. */
internal class Template(val parts: List<IntArray?>)

/** Reads the post-processor of tokenizer.json for single texts. */
internal fun template(part: Part?): Template = when (part?.type) {
    null, "ByteLevel" -> Template(listOf(null)) // only about offsets
    "TemplateProcessing" -> Template(part.parts("single").map { templatePart(it, part) })
    "BertProcessing", "RobertaProcessing" -> Template(listOf(pairId(part, "cls"), null, pairId(part, "sep")))
    "Sequence" -> {
        val all = part.parts("processors").map { template(it) }.filter { it.parts != listOf(null) }
        // The library takes what the first one adds for a second text.
        if (all.size > 1) part.refuse("more than one post-processor that adds tokens")
        all.firstOrNull() ?: Template(listOf(null))
    }
    else -> part.refuse("the post-processor \"${part.type}\"")
}

private fun templatePart(piece: Part, whole: Part): IntArray? {
    piece.part("Sequence")?.let {
        if (it.text("id") != "A") whole.refuse("a second sequence in the template for one")
        return null
    }
    val name = piece.part("SpecialToken")?.text("id") ?: piece.broken("neither \"Sequence\" nor \"SpecialToken\"")
    val token = whole.part("special_tokens")?.part(name) ?: whole.broken("the special token \"$name\" is not described")
    return token.list("ids").map { ((it as? Long) ?: token.broken("an id that is no number")).toInt() }.toIntArray()
}

/** The id of `["[CLS]", 101]`. */
private fun pairId(part: Part, key: String): IntArray {
    val id = part.list(key).getOrNull(1) as? Long ?: part.broken("\"$key\" is not a token and its id")
    return intArrayOf(id.toInt())
}
