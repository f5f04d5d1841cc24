package dev.edgekit.tokenizer

import dev.edgekit.BundleException
import dev.edgekit.UnsupportedException
import dev.edgekit.tokenizer.jinja.Interpreter
import dev.edgekit.tokenizer.jinja.Lexer
import dev.edgekit.tokenizer.jinja.Parser
import dev.edgekit.tokenizer.jinja.TemplateFailure
import dev.edgekit.tokenizer.jinja.TemplateUnknown

/**
 * A model's chat template: the part of Jinja that chat templates use, set up as transformers does it. Errors begin with [where].
 */
internal class ChatTemplate(private val text: String, private val where: String) {
    private val program by lazy { Parser(Lexer(text).tokens()).template() }

    /**
     * The text of a conversation, ending where the assistant begins. [messages] are pairs of role and content; [special] holds `bos_token`
     * and the like. Throws BundleException when the template is broken or refuses the messages, UnsupportedException naming what this
     * interpreter does not know.
     */
    fun render(messages: List<Pair<String, String>>, special: Map<String, String>): String {
        val listed = messages.map { (role, content) -> mapOf("role" to role, "content" to content) }
        try {
            return Interpreter().render(program, mapOf("messages" to listed, "add_generation_prompt" to true) + special)
        } catch (error: TemplateFailure) {
            throw BundleException("$where: the chat template failed: ${oneLine(error.message.orEmpty())}", error)
        } catch (error: TemplateUnknown) {
            val what = oneLine(error.what)
            throw UnsupportedException("$where: the chat template uses $what, which is not supported on this device", error)
        }
    }

    private fun oneLine(text: String): String = text.split(WHITE).filter(String::isNotEmpty).joinToString(" ").take(MAX_MESSAGE)

    private companion object {
        const val MAX_MESSAGE = 200
        val WHITE = Regex("\\s+")
    }
}
