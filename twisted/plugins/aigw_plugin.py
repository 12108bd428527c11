from twisted.application.service import ServiceMaker

aigw = ServiceMaker("AI Gateway", "aigw.tap", "An OpenAI-compatible gateway that falls through to the next provider.", "aigw")
