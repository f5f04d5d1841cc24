package dev.edgekit.demo

import android.app.Activity
import android.os.Bundle
import android.os.Handler
import android.os.Looper
import android.view.View
import android.view.inputmethod.EditorInfo
import android.widget.ArrayAdapter
import android.widget.Button
import android.widget.EditText
import android.widget.ProgressBar
import android.widget.ScrollView
import android.widget.Spinner
import android.widget.TextView
import dev.edgekit.android.BundleAssets

/** The one screen: buttons become [Action]s, states become what the views show. */
@Suppress("DEPRECATION", "OVERRIDE_DEPRECATION") // a retained instance: AndroidX, which has more than that, is not needed here
class MainActivity : Activity() {
    private lateinit var model: DemoModel
    private val main = Handler(Looper.getMainLooper())
    private var bundles: List<BundleChoice> = emptyList()

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContentView(R.layout.main)
        // What runs goes on while the device is turned: the model outlives the activity.
        model = lastNonConfigurationInstance as? DemoModel ?: newModel()
        model.listener = { state -> main.post { if (!isDestroyed) show(state) } }
        button(R.id.open) { bundles.getOrNull(list().selectedItemPosition)?.let { model.act(Action.Open(it)) } }
        button(R.id.run_parity) { model.act(Action.Parity) }
        button(R.id.run_benchmark) { model.act(Action.Benchmark) }
        button(R.id.send) { send() }
        button(R.id.stop) { model.act(Action.Stop) }
        message().setOnEditorActionListener { _, action, _ -> (action == EditorInfo.IME_ACTION_SEND).also { if (it) send() } }
        show(model.state)
    }

    override fun onResume() {
        super.onResume()
        model.act(Action.Refresh)
    }

    override fun onRetainNonConfigurationInstance(): Any = model

    override fun onDestroy() {
        super.onDestroy()
        if (isFinishing) model.close()
    }

    private fun newModel(): DemoModel {
        val application = applicationContext
        val source = AppBundles(BundleAssets(application.assets, application.filesDir), application.getExternalFilesDir("bundles"))
        return DemoModel(source, EdgeKitEngine { BundleAssets.operators(application) })
    }

    private fun send() {
        val text = message().text.toString().trim()
        if (text.isEmpty() || !Screen.of(model.state).canSend) return
        message().setText("")
        model.act(Action.Send(text))
    }

    private fun show(state: DemoState) {
        val screen = Screen.of(state)
        if (bundles != state.bundles) {
            bundles = state.bundles
            list().adapter = ArrayAdapter(this, android.R.layout.simple_spinner_dropdown_item, bundles)
        }
        text(R.id.summary, screen.summary)
        text(R.id.error, screen.error)
        text(R.id.parity, screen.parity)
        (findViewById(R.id.chart) as ChartView).rows = state.benchmark
        val grew = text(R.id.chat, screen.chat)
        showWork(screen)
        for ((id, enabled) in listOf(
            R.id.open to screen.canOpen,
            R.id.run_parity to screen.canCompare,
            R.id.run_benchmark to screen.canMeasure,
            R.id.send to screen.canSend,
            R.id.stop to screen.canStop,
        )) view(id).isEnabled = enabled
        if (grew && screen.chat.isNotEmpty()) followChat()
    }

    private fun showWork(screen: Screen) {
        view(R.id.work).visibility = if (screen.status != null) View.VISIBLE else View.GONE
        text(R.id.status, screen.status)
        val progress = findViewById(R.id.progress) as ProgressBar
        progress.isIndeterminate = screen.percent == null
        progress.progress = screen.percent ?: 0
    }

    /** Says whether the text is new. Setting the same again would end a selection. */
    private fun text(id: Int, text: String?): Boolean {
        val view = findViewById(id) as TextView
        view.visibility = if (text.isNullOrEmpty()) View.GONE else View.VISIBLE
        if (view.text.toString() == text.orEmpty()) return false
        view.text = text.orEmpty()
        return true
    }

    private fun followChat() {
        val scroll = findViewById(R.id.scroll) as ScrollView
        scroll.post { scroll.smoothScrollTo(0, scroll.getChildAt(0).bottom) }
    }

    private fun button(id: Int, action: () -> Unit) = (findViewById(id) as Button).setOnClickListener { action() }

    private fun view(id: Int): View = findViewById(id) as View

    private fun list(): Spinner = findViewById(R.id.bundles) as Spinner

    private fun message(): EditText = findViewById(R.id.message) as EditText
}
